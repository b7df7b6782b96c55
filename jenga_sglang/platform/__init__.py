"""SGLang on a machine without an accelerator."""
