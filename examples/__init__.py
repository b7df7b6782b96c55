"""Programs in SGLang's front-end language, on text that lies in this repository."""
