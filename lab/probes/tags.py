"""The quantities that the probes of the lab may write, whatever their settings: what can be known before they measure."""

from collections.abc import Sequence

from lab.probes.fisher_matrices import MATRICES

RATES = " ".join(f"rate{bound}{unit}" for bound in ("", "_low", "_high") for unit in ("", "_per_time", "_per_epoch"))
OF_MATRICES = " ".join(f"{what}_{name}" for what in ("trace", "norm", "distance", "lambda_min") for name in MATRICES)
RANKED = " ".join(f"lambda_[1-9]*_{name}" for name in MATRICES)
COSINES = " ".join(f"cosine_{a}_{b}" for i, a in enumerate(MATRICES) for b in MATRICES[i + 1 :])
QUANTITIES = {
    "sharpness": "ratio threshold lambda_max lambda_[2-9]* lambda_[1-9][0-9]* lambda_min preconditioned moved directional "
    "midpoint loss converged phase clipped_threshold clipped_ratio",
    "batch_sharpness": " ".join(
        f"{name}{end}"
        for name in ("ratio_of_means", "mean_of_ratios", "generalised", "gni", "lambda_max")
        for end in ("", "_low", "_high")
    )
    + " ratio",
    "batch_landscape": "pc1_share pc2_share spread distance offset moved travelled dimension gain price barrier "
    "gradient_left gradient_left_full reached reached_full clusters silhouette silhouette_null as_in_training batch_size "
    "left_out leave_one_out leave_one_out_residual",
    "critical_point": "kind loss grad_norm gain index index_exact index_fraction nullity nullity_exact lambda_min "
    "lambda_max search moved search_alignment",
    "escape": f"index index_exact loss grad_norm exits failures {RATES} rate_theory barrier time time_theory growth "
    "growth_kick growth_theory noise_along critical_lr landed",
    "fisher": f"scale rao_norm residual_share examples converged {OF_MATRICES} {RANKED} {COSINES}",
    "linear_stability": "sharpness non_uniformity second_moment_radius lyapunov stable stable_mean_square ratio bound "
    "in_plane critical_lr critical_lr_mean_square critical_lr_plane epochs_replaced before_first_update part_moves "
    "preconditioned region",
    "noise": "trace trace_batch trace_cross scale grad_norm lambda_max lambda_[2-9]* lambda_[1-9][0-9]* effective_rank "
    "rank_bound alignment cosine slope slope_theory downhill tail_index tail_gamma kurtosis kurtosis_batch not_gaussian "
    "gaussian_p batch_factor batch_size trace.* measured_over_predicted.*",
    "spectrum": "lambda_[1-9]* lambda_min_[1-9]* trace trace_converged frobenius negative_mass effective_rank outliers "
    "bulk_edge gradient_share overlap converged gauss_newton/* residual/* layer/*",
}
"""By the name of the probe: its quantities, and patterns of `fnmatch` for those that are numbered or named by the model."""
COSTS = ("seconds", "matvecs", "examples", "batches", "search_matvecs")


def written(probe: str) -> Sequence[str]:
    """The tags that a probe of this name may write, as patterns of `fnmatch`; of one that is not the lab's any of its own.

    >>> written("sharpness")[0], written("mine")
    ('sharpness/ratio', ['mine/*', 'error/mine/*', 'cost/mine/*'])
    """
    if probe not in QUANTITIES:
        return [f"{head}{probe}/*" for head in ("", "error/", "cost/")]
    names = QUANTITIES[probe].split()
    tags = [f"{head}{probe}/{name}" for head in ("", "error/") for name in names]
    return [*tags, *(f"cost/{probe}/{name}" for name in COSTS)]
