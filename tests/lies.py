"""All lies about certificates."""

from __future__ import annotations

import lies_further
import lies_network
import lies_parts
import lies_samples
import lies_smallgain
import lies_together

LIES = [
    lie
    for told in (lies_network, lies_samples, lies_smallgain, lies_further, lies_parts, lies_together)
    for lie in told.LIES
]
