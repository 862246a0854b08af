"""Crops that anyone can search by sentence: their vectors in a store, and what is known of them."""

from cskt.utils.extras import require

require("gallery", "lancedb", "sqlglot")
