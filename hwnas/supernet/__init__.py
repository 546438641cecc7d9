"""The supernet: all options of every slot with shared weights; training it, scoring its paths, deriving networks from it."""
