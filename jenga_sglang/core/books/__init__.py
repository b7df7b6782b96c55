"""Who owns which page: large pages, small pages, page tables, the prefix tree and the order of use.

Each has a ``check()`` that recounts it. Only the core changes them.
"""
