"""The cluster, own or borrowed: how it starts, how it is reached, how it ends."""
