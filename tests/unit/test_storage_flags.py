"""Which storage a start takes."""

from pathlib import Path
from typing import Any

import pytest

from jenga_sglang import flags, storage_flags

DOCS = Path(__file__).parents[2] / "docs" / "host-tier.md"
TIER = {"memory_backend": "jenga", "enable_hierarchical_cache": True, "device": "cpu"}
EXTRA = "hicache_storage_backend_extra_config"


@pytest.mark.parametrize("backend", storage_flags.BACKENDS)
@pytest.mark.parametrize("extra", [None, '{"prefetch_threshold": 16}', "@storage.toml"])
def test_backends_of_objects_start(backend: str, extra: str | None) -> None:
    assert flags.apply_flag(TIER | {"hicache_storage_backend": backend, EXTRA: extra})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"hicache_storage_backend": "hf3fs"}, "backend hf3fs: has not been tried"),
        ({EXTRA: '{"interface_v1": 1}'}, "backend file: a class of one's own takes"),
        ({EXTRA: '{"hicache_storage_pass_prefix_keys": true}'}, "keys before a page are not"),
        ({EXTRA: "{prefetch_threshold: 16}"}, "extra-config: is not JSON"),
        ({"enable_hierarchical_cache": False}, "backend file: is below host memory"),
    ],
)
def test_others_are_refused_in_one_line(values: dict[str, Any], line: str) -> None:
    with pytest.raises(SystemExit) as refused:
        flags.apply_flag(TIER | {"hicache_storage_backend": "file"} | values)
    (only,) = str(refused.value).splitlines()
    assert line in only


def test_the_documentation_names_those_that_work() -> None:
    section = DOCS.read_text().split("The backends are SGLang's\nown: ")[1].split(" are refused")[0]
    works, refused = section.split("objects. ")
    assert all(f"`{backend}`" in works for backend in storage_flags.BACKENDS)
    assert not any(f"`{backend}`" in refused for backend in storage_flags.BACKENDS)
