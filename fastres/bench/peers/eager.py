"""PyTorch as it is: every operator by itself."""

from __future__ import annotations

import torch

from .peer import Peer, anywhere, plain_step

EAGER, EAGER_NCHW = "eager channels_last", "eager NCHW"

PEERS = (
    Peer(EAGER, lambda workload: plain_step(workload, False, torch.channels_last), anywhere),
    # weights and inputs as a script leaves them that knows nothing of channels_last
    Peer(
        EAGER_NCHW, lambda workload: plain_step(workload, False, torch.contiguous_format), anywhere
    ),
)
