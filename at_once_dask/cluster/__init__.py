"""The cluster, the library's own or a borrowed one: how it starts, how it is reached, how it ends."""
