"""The sizes of a run: what each preset puts into a notebook's parameters, and how close a retrained score must come."""

from __future__ import annotations

from collections.abc import Mapping

# What a preset changes in a notebook's parameters cell. Quick changes nothing: the literals stored in a notebook are
# the quick size, which is also what the tests run.
PRESETS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "quick": {},
    "full": {
        "00": {"dataset": "cifar10", "num_draws": 50, "num_examples": 20, "example": 7, "num_steps": 16},
        "01": {
            "dataset": "cifar10",
            "datasets": ["cifar10", "mnist", "fer_plus", "planted", "digits", "california_housing", "diabetes"],
            "num_examples": 10_000,
        },
        "02": {"dataset": "cifar10", "novel": "cifar100", "num_draws": 50, "num_examples": 500},
        "03": {
            "dataset": "cifar10",
            "num_examples": 100,
            "num_few": 20,
            "num_steps": 64,
            "num_samples": 500,
            "num_seeds": 10,
            "step_counts": [1, 2, 4, 8, 16, 32, 64, 128],
            "sample_counts": [100, 300, 1000, 3000],
        },
        "04": {
            "dataset": "cifar10",
            "num_draws": 50,
            "num_examples": 500,
            "num_lime": 100,
            "num_slow": 16,
            "num_jobs": 4,
            "num_samples": 300,
            "num_steps": 8,
            "num_reference": 200,
            "num_few": 8,
            "num_walk": 20,
            "step_counts": [8, 16, 32, 64, 128, 256],
            "sample_counts": [100, 300, 1000],
        },
        "05": {
            "datasets": ["cifar10", "fer_plus"],
            "named": {"cifar10": "deer"},
            "soft_labels": {"cifar10": "cifar10h"},
            "seeds_of": {"cifar10": [0, 1, 2]},
            "posteriors": ["deep_ensemble", "mc_dropout", "mc_dropout_all", "mc_dropconnect", "flipout", "laplace"],
            "num_examples": 500,
            "per_class": 100,
            "per_class_lime": 10,
            "num_answers": 40,
            "num_answers_lime": 15,
            "num_draws": 50,
            "num_few": 8,
            "num_steps": 8,
            "num_samples": 200,
        },
        "06": {
            "dataset": "cifar10",
            "datasets": ["cifar10", "fer_plus", "planted"],
            "seeds": {"mc_dropout": [0, 1, 2], "mc_dropout_all": [0, 1, 2], "deep_ensemble": [0, 1]},
            "num_draws": 50,
            "num_slow_draws": 5,
            "num_examples": 500,
            "num_others": 100,
            "num_lime": 100,
            "num_ablation": 200,
            "num_samples": 300,
            "num_path": 8,
            "num_steps": 16,
            "num_fine": 32,
        },
        "07": {
            "dataset": "cifar10",
            "members": {
                "cifar10": [5, 5, 1],
                "planted": [5, 10, 1],
                "digits": [5, 10],
                "mnist": [5, 5],
                "california_housing": [5, 10, 1],
            },
            "methods": ["mc_dropout", "mc_dropout_all", "mc_dropconnect", "flipout", "laplace"],
            "untrained": [
                *(["cifar10", seed, method] for seed in (1, 2) for method in ("mc_dropconnect", "flipout")),
                *(["mnist", 1, method] for method in ("mc_dropout", "mc_dropout_all", "mc_dropconnect", "flipout")),
                ["mnist", 1, "laplace"],
            ],
            "num_examples": 500,
            "num_others": 500,
            "num_draws": 12,
            "drop_rates": [0.04, 0.15],
            "num_steps": 8,
            "num_lime": 100,
            "num_samples": 150,
            "explained": ["guided_backprop", "gradient", "integrated_gradients", "lime"],
            "levels": [0.5, 0.8, 0.9, 0.95],
            "dtype": "float32",
        },
        "08": {
            "dataset": "california_housing",
            "seeds": [0, 1, 2],
            "num_draws": 50,
            "num_examples": 1000,
            "num_lime": 500,
            "num_steps": 128,
            "num_samples": 1000,
            "group": ["Latitude", "Longitude"],
        },
        "09": {
            "training_seeds": [0, 1, 2],
            "others": ["mnist", "cifar10"],
            "per_kind": 200,
            "num_scanned": 2000,
            "num_others": 500,
            "num_sharpened": 50,
            "num_checked": 8,
            "dtype": "float32",
        },
        "10": {
            "num_examples": {"planted": 200, "mnist": 200, "cifar10": 200, "fer_plus": 200},
            "training_seeds_of": {"planted": [0, 1, 2], "mnist": [0, 1, 2]},
            "num_scanned": 1000,
            "shares": [0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2, 0.4, 1.0],
            "num_changed": 50,
            "changed": [
                *("UA-Backprop (paper)", "UA-Backprop (recommended)", "UA-Replacement", "gradient x input, signed"),
                *("IG from blurred", "FullGrad of prediction", "|x - blur|", "random"),
            ],
            "novel_of": {"mnist": "notmnist", "cifar10": "cifar100"},
            "epsilon_of": {"planted": 0.02, "mnist": 0.1, "cifar10": 0.02, "fer_plus": 0.02},
            "patch_sizes": {"planted": 8, "mnist": 7, "cifar10": 8, "fer_plus": 12},
            "per_kind": 20,
            "num_steps": 25,
            "num_samples": 200,
            "clue_steps": 40,
            "candidates": 4,
            "group": 2,
            "num_jobs": 4,
            "dtype": "float32",
        },
        "11": {
            "settings": [["mnist", False, 250], ["mnist", False, 1000], ["mnist", True, 250]],
            "seeds": [0, 1, 2, 3, 4, 5, 6, 7],
            "sizes": {
                "num_members": 3,
                "num_test": 500,
                "epochs": 20,
                "batch_size": 16,
                "learning_rate": 0.005,
                "corruptions": ["gaussian_noise", "blur", "contrast"],
                "severity": 3,
                "dtype": "float32",
            },
            "added": [100, 250, 500],
            "num_pool": 5000,
            "num_jobs": 4,
        },
        "12": {
            "dataset": "cifar10",
            "novel": "cifar100",
            "votes": "cifar10h",
            "others": {"mnist": "notmnist"},
            "dtype": "float32",
            "num_draws": 20,
            "num_draws_all": 10,
            "num_examples": 500,
            "num_worse": 100,
            "num_attacked": 200,
            "num_checked": 100,
            "num_stable": 32,
            "num_lime": 100,
            "num_samples": 200,
            "num_steps": 8,
            "severities": [1, 2, 3, 4, 5],
            "epsilons": [1, 4],
            "num_pgd": 10,
            "extra": ["laplace"],
        },
        "15": {
            "dataset": "cifar10",
            "num_pictures": 45_000,
            "num_test": 2000,
            "num_draws": 10,
            "num_explained": 100,
            "fit_dtype": "float32",
        },
        "16": {"dataset": "cifar10", "num_examples": 100, "num_draws": 20, "num_steps": 8, "num_samples": 200},
        "17": {
            "dataset": "cifar10",
            "datasets": ["cifar10", "fer_plus", "mnist", "california_housing", "planted"],
            "seeds_of": {"cifar10": [0, 1, 2], "california_housing": [0, 1, 2], "planted": [0, 1, 2]},
            "without": [
                "cifar10 deep_ensemble 2",
                *(f"cifar10 {method} {seed}" for method in ("mc_dropconnect", "flipout") for seed in (1, 2)),
            ],
            "num_draws": 50,
            "num_draws_all": 10,
            "num_test": 2000,
            "num_examples": 500,
            "num_ig": 200,
            "num_lime": 100,
            "num_samples": 200,
            "num_steps": 8,
            "curve_steps": 16,
            "num_resamples": 2000,
            "num_timed": 4,
            "precision": "float32",
        },
        "18": {
            "datasets": ["mnist", "cifar10", "planted"],
            "num_scanned": 500,
            "num_validation": 100,
            "num_examples": 150,
            "num_few": 30,
            "tau1s": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0],
            "tau2s": [0.3, 1.0, 3.0, 10.0, 100.0],
            "counts": {"deep_ensemble": [2, 3, 5], "mc_dropout": [5, 10, 20, 50], "laplace": [5, 10, 20]},
            "num_steps": 10,
            "num_path": 8,
            "num_jobs": 4,
            "dtype": "float32",
        },
        "13": {"num_rounds": 3, "divisor": 1, "memory_draws": [8, 32, 128, 512]},
    },
}

# A notebook that reads what others published runs after them, and again when that has changed.
READS: Mapping[str, str] = {"14": "full/*_claims.csv"}

# How far a retrained score may lie from the published one, absolute, in the column's unit. Training in float32 is
# chaotic (another thread count moved accuracies by some percent), so these are wide; tables not named are not compared.
TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "01_scores": {"accuracy": 0.05, "r2": 0.05, "nll": 0.3, "brier": 0.08, "ece": 0.05},
}


def parameters(preset: str, notebook: str) -> dict[str, object]:
    """Parameters that `preset` injects into the notebook with this number; a notebook without a row gets the preset.

    Raises:
        ValueError: the preset is not known.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is not known; choose one of {', '.join(PRESETS)}")
    return {"preset": preset, **PRESETS[preset].get(notebook, {})}
