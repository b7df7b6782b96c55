"""SGLang's own interfaces, executing what `jenga_sglang.core` decides. Tensors live here."""
