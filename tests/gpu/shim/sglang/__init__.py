"""The few names of SGLang 0.5.23 that Jenga's device backends use, for a machine without SGLang.

`make gpu-kit` puts SGLang's own Triton kernels beside them. What is here has SGLang's signatures
and does only what a test of attention layers needs; tests compare it with the SGLang installed.
"""
