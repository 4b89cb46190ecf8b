"""All lies about certificates."""

from __future__ import annotations

import lies_further
import lies_network
import lies_parts
import lies_samples
import lies_smallgain

LIES = lies_network.LIES + lies_samples.LIES + lies_smallgain.LIES + lies_further.LIES + lies_parts.LIES
