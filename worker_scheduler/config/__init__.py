"""Variables, options, values and URLs that an operator gives, checked without a connection."""
