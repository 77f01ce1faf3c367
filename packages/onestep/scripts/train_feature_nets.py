"""Train the classifiers whose features `onestep_diffusion.features` ships: python scripts/train_feature_nets.py NAME.

NAME is digits or fashion. The test accuracy goes into the file's metadata.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file

from onestep_diffusion.data import load_data
from onestep_diffusion.features import WEIGHTS, logits

SETTINGS = {
    "digits": {"data": "digits", "channels": (32, 64, 96), "epochs": 60},
    "fashion": {"data": "fashion-mnist", "channels": (32, 64, 96, 32), "epochs": 10},
}
SEED, BATCH, RATE = 0, 128, 3e-3


def main(name: str) -> None:
    settings = SETTINGS[name]
    data = load_data(settings["data"], seed=SEED)
    x, y = jnp.asarray(data.to_model(data.x)), jnp.asarray(data.labels)
    steps = settings["epochs"] * len(x) // BATCH
    params = initial(jax.random.key(SEED), settings["channels"], data.classes)
    adam = optax.adamw(optax.cosine_decay_schedule(RATE, steps), weight_decay=1e-2)

    def loss(params, index):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x[index]), y[index]).mean()

    @jax.jit
    def update(params, opt, key):
        grads = jax.grad(loss)(params, jax.random.randint(key, (BATCH,), 0, len(x)))
        changes, opt = adam.update(grads, opt, params)
        return optax.apply_updates(params, changes), opt

    opt = adam.init(params)
    for step in range(steps):
        params, opt = update(params, opt, jax.random.fold_in(jax.random.key(SEED), step))
    test = data.to_model(data.held_out)
    parts = [jnp.argmax(logits(params, test[i : i + 1000]), axis=1) for i in range(0, len(test), 1000)]
    accuracy = float(np.mean(np.concatenate(parts) == data.held_out_labels))
    arrays = {key: np.asarray(value) for key, value in params.items()}
    about = {"data": settings["data"], "seed": SEED, "epochs": settings["epochs"], "test_accuracy": accuracy}
    WEIGHTS.mkdir(exist_ok=True)
    save_file(arrays, WEIGHTS / f"{name}.safetensors", metadata={"config": json.dumps(about)})
    print(about, sum(a.size for a in arrays.values()), "parameters")


def initial(key, channels, classes):
    params = {}
    for place, (a, b) in enumerate(zip((1, *channels), (*channels, classes), strict=False)):
        last = place == len(channels)
        shape, name = ((a, b), "out") if last else ((3, 3, a, b), f"conv{place}")
        spread = np.sqrt((1 if last else 2) / np.prod(shape[:-1]))
        params[f"{name}.kernel"] = spread * jax.random.normal(jax.random.fold_in(key, place), shape)
        params[f"{name}.bias"] = jnp.zeros(b)
    return params


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in SETTINGS:
        sys.exit(f"usage: {Path(sys.argv[0]).name} {'|'.join(SETTINGS)}")
    main(sys.argv[1])
