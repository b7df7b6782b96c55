"""FlashInfer and Triton over one byte buffer that many layer groups share.

Importing the package needs torch only; the kernel modules import triton, and `plan` and `aot`
import flashinfer.
"""

from .layout import GroupLayout
from .limits import check_kernel_limits, require_kernel_limits
from .views import block_views, latent_views, page_views, row_views

__all__ = [
    "GroupLayout",
    "block_views",
    "check_kernel_limits",
    "latent_views",
    "page_views",
    "require_kernel_limits",
    "row_views",
]
