"""Two hosts of Dandolo behind HAProxy with one Redis: what happens to requests when a host is taken out."""
