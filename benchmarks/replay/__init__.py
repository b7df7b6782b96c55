"""Replays a trace through SGLang's own scheduler, with a chosen memory backend and no model."""
