"""The `sfvgen` command."""
