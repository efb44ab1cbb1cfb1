"""All data that is drawn: slides, lymph nodes, series, smoke shards."""
