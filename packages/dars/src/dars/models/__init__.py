"""Chat models, and what the search asks of them."""
