"""The page map on SGLang's HTTP server: JSON, one page without external assets, its key form."""
