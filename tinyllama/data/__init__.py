"""Raw text to token shards, and sample k of a mixture to the tokens it is made of."""
