"""Speed of the operations beside plain torch, both timed in one process: `python -m rdkernels bench`.

Calls of ours and of the rival alternate, and the order within a pair alternates too, so that a change of clock or of
load meets both. The ratio of a problem is the median of the pairwise ratios, rival's time / ours, with its quartiles.
Where torch has several ways, the fastest at the thread count is the rival. Where the rival does more multiply-adds, the
captured fraction is the ratio over their reduction. A panel's figures have a geometric mean and a worst.
The machine's limits are measured in the same run, and every row says which share of the nearer limit it reaches. Speeds
are shown, never asserted: what the table calls a goal is the figure asked of an AVX-512 machine. On a GPU
(`--device cuda`) the time is the GPU's own, behind a backlog and with a cold cache: see `gpu.py`.
"""

from .suite import problems, run, run_gpu
from .timing import Timing, interleaved, measure

__all__ = ["Timing", "interleaved", "measure", "problems", "run", "run_gpu"]
