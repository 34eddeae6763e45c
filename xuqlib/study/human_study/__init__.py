"""A study with people: pairs of maps, a page that shows them, and what the answers say."""
