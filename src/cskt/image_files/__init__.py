"""Image files of every format, bounded, checked and decoded: `decode` is the door."""
