"""Device code, Triton only: no checks and no allocation; the modules above this folder do both."""
