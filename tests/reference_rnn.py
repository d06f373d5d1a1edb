"""The recurrent network's equations in plain float64 NumPy: the oracle of the tests.

Written from the equations, with padded batches, masks and a loop over all time steps, sharing no
code with the package. It takes the arrays of ``RNN.state_dict()``.
"""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


class Sites:
    """The normalizers of one layer and direction."""

    def __init__(self, state, suffix, norm, training, eps, momentum, seen):
        self.state = state
        self.suffix = suffix
        self.norm = norm
        self.training = training
        self.eps = eps
        self.momentum = momentum
        self.seen = seen
        self.t = 0
        self.valid = None

    def __call__(self, site, a):
        name = site + self.suffix
        if self.norm == "noop":
            return a
        if self.norm == "layer":
            mean = a.mean(axis=1, keepdims=True)
            var = ((a - mean) ** 2).mean(axis=1, keepdims=True)
        else:
            mean, var = self.batch_statistics(name, a)
        y = self.state[f"{name}.gain"] * (a - mean) / np.sqrt(var + self.eps)
        return y + self.state.get(f"{name}.bias", 0.0)

    def batch_statistics(self, name, a):
        running_mean, running_var = (
            self.state[f"{name}.{key}"] for key in ("running_mean", "running_var")
        )
        row = min(self.t, len(running_mean) - 1)
        if not self.training or self.valid.sum() < 2:
            return running_mean[row], running_var[row]
        mean = a[self.valid].mean(axis=0)
        var = ((a[self.valid] - mean) ** 2).mean(axis=0)
        for running, new in ((running_mean, mean), (running_var, var)):
            running[row] = (1 - self.momentum) * running[row] + self.momentum * new
        self.state[f"{name}.num_batches"][row] += 1
        self.seen.append((name, row, self.valid.sum(), mean, var))
        return mean, var


def cell_step(config, weights, norm, x, h, c):
    w, u, b_ih, b_hh = weights
    size = h.shape[1]
    if config["cell"] == "rnn":
        a = norm("norm_a", x @ w.T + h @ u.T) + b_ih + b_hh
        return (np.tanh(a) if config["nonlinearity"] == "tanh" else np.maximum(a, 0)), c
    if config["cell"] == "lstm":
        a = norm("norm_ih", x @ w.T) + b_ih + norm("norm_hh", h @ u.T) + b_hh
        i, f, g, o = np.split(a, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(norm("norm_c", c)), c
    rz = slice(0, 2 * size)
    n = slice(2 * size, 3 * size)
    a = norm("norm_ih", x @ w[rz].T) + b_ih[rz] + norm("norm_hh", h @ u[rz].T) + b_hh[rz]
    r, z = np.split(sigmoid(a), 2, axis=1)
    a = norm("norm_in", x @ w[n].T) + b_ih[n]
    if config["reset_after"]:
        a = a + r * (norm("norm_hn", h @ u[n].T) + b_hh[n])
    else:
        a = a + norm("norm_hn", (r * h) @ u[n].T) + b_hh[n]
    return (1 - z) * np.tanh(a) + z * h, c


def run(rnn, x, state=None, lengths=None, *, training=False, seen=None):
    """Return y, the final state as a list of arrays, and the state dictionary after the run.

    Appends to ``seen``: name, step, rows, mean and variance of each batch statistic.
    """
    seen = [] if seen is None else seen
    config = rnn.get_config()
    arrays = {name: np.array(array, float) for name, array in rnn.state_dict().items()}
    eps = config["norm_config"].get("eps", 1e-5)
    momentum = config["norm_config"].get("momentum", 0.1)
    x = np.array(x, float)
    n_steps, n_batch, _ = x.shape
    size = config["hidden_size"]
    n_directions = 1 + config["bidirectional"]
    shape = (config["num_layers"] * n_directions, n_batch, size)
    if state is None:
        state = [np.zeros(shape)] * 2
    elif config["cell"] != "lstm":
        state = [state, np.zeros(shape)]
    h_all, c_all = (np.array(array, float) for array in state)
    lengths = np.full(n_batch, n_steps) if lengths is None else np.asarray(lengths)
    rows = np.arange(n_batch)
    for layer in range(config["num_layers"]):
        y = np.zeros((n_steps, n_batch, n_directions * size))
        for direction in range(n_directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            weights = [
                arrays[name + suffix] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            norm = Sites(arrays, suffix, config["norm"], training, eps, momentum, seen)
            place = layer * n_directions + direction
            h, c = h_all[place], c_all[place]
            for t in range(n_steps):
                valid = t < lengths
                if not valid.any():
                    break
                time = np.where(valid, lengths - 1 - t if direction else t, 0)
                norm.t, norm.valid = t, valid
                inputs = np.where(valid[:, np.newaxis], x[time, rows], 0)
                new_h, new_c = cell_step(config, weights, norm, inputs, h, c)
                h[valid], c[valid] = new_h[valid], new_c[valid]
                part = slice(direction * size, (direction + 1) * size)
                y[time[valid], rows[valid], part] = new_h[valid]
        x = y
    final = [h_all, c_all] if config["cell"] == "lstm" else [h_all]
    return x, final, arrays
