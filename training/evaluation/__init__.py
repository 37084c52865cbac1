"""Zero-shot classification and retrieval, pure functions under thin runners."""
