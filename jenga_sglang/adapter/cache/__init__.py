"""What SGLang's scheduler asks for: prefix cache, allocator, admission, KV events."""
