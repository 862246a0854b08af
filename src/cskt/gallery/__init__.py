"""Crops that anyone can search by sentence: their vectors in a store, and what is known of them."""

from cskt.utils.messages import require

require("gallery", "lancedb", "sqlglot")
