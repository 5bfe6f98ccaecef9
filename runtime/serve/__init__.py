"""The HTTP service behind ``emocaliber serve``. Needs the extra ``serve``; nothing else of the runtime imports it."""
