"""Image files of every format, checked against limits and decoded; `decode.decode_image` is the entry point."""
