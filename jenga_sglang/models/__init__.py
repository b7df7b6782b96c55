"""Models that SGLang has no class for, built from its own layers.

SGLang takes them where ``SGLANG_EXTERNAL_MODEL_PACKAGE=jenga_sglang.models`` is set.
"""


def register_configs() -> None:
    """Make SGLang read the configs of these models, where it is told to take their classes: it
    looks for classes only after it has read a config."""
    from sglang.srt.environ import envs

    if envs.SGLANG_EXTERNAL_MODEL_PACKAGE.get() == __name__:
        from jenga_sglang.models import jamba_config

        jamba_config.register()
