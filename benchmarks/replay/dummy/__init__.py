"""A model of attention layers only: the package that SGLang loads model classes from."""
