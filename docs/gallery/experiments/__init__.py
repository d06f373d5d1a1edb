"""What the experiments of the gallery share: data, networks, training, and the way they report."""
