"""PyHessian, the peer that users know, behind one door: its numbers beside ours, and nothing of the caller's touched.

PyHessian (Yao, Gholami, Keutzer, Mahoney 2020, arXiv 1912.07145) 0.1 leaves the model in eval mode, adds to `.grad`,
draws from the global generator, gives twice the eigenvalues to a second instance where gradients were not cleared, and
its density asks for `torch.eig`, which torch no longer has. Here it works on a copy of the model with the weights w, in
the BatchNorm mode and the chunks of the objective, in a fork of the random state, and with `eigh` in the place of `eig`.

What it computes is left as it is:
top      power iteration with deflation, of the eigenvalue of largest MAGNITUDE; stops when two Rayleigh quotients differ
         by tol relatively, with an error of tol / (1 - (lambda_2/lambda_1)^2): 0.3 to 0.8 % low at tol 1e-3 and the edge.
trace    Hutchinson; stops when the running mean moves by less than tol, by luck early; a negative trace stops at once.
density  Lanczos quadrature from random signs.
"""

import copy
import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lab.curvature.density import WIDTH, SpectralDensity, smoothed, spanned
from lab.objective import NetworkObjective, Objective
from lab.params import flatten
from lab.results import Eigenpairs, Estimate

METHOD = "PyHessian"
GRID = 1024
"""Points of the grid of a density."""
UNUSED = ("to be a torch.Tensor", "not have been used in the graph", "does not require grad")
"""What torch says when PyHessian asks it for the derivative of a gradient that is not there."""


class PyHessian:
    """PyHessian's view of the Hessian of `objective` at w. `matvecs` counts all Hessian products so far.

    Raises TypeError for an objective that is no network, and ValueError (when it computes) for a trainable parameter that
    the loss does not depend on: PyHessian takes neither.
    Cost: a product is 1.1 gradients where the objective is one chunk, else 2.2, rebuilt chunk by chunk.
    """

    def __init__(self, objective: Objective, w: Tensor, *, generator: torch.Generator | None = None):
        if not isinstance(objective, NetworkObjective):
            raise TypeError(f"PyHessian measures networks; {type(objective).__name__} is none")
        self.objective, self.w, self.matvecs = objective, w.detach().clone(), 0
        self._generator = generator or torch.Generator().manual_seed(0)

    def top(self, k: int = 1, *, tol: float = 1e-3, max_matvecs: int = 100) -> Eigenpairs:
        """The k eigenvalues of largest magnitude by `eigenvalues(top_n=k)`, in the order it finds them.

        errors are the residuals ||Hv - theta v||, which cost k products more, and converged is said of them: its own
        rule knows of no error.
        """
        if k < 1 or max_matvecs < 2 * k:
            raise ValueError(f"k={k}, max_matvecs={max_matvecs}: expected k > 0 and at least {2 * max(k, 1)} products")
        before, most = self.matvecs, max_matvecs // k
        with self._peer() as peer:
            found, directions = peer.eigenvalues(maxIter=most, tol=tol, top_n=k)
            values = torch.tensor(found, dtype=torch.float64)
            vectors = torch.stack([flatten(v) for v in directions], dim=1)
        vectors = vectors / vectors.double().norm(dim=0).to(vectors)
        images = torch.stack([self.objective.hvp(self.w, v) for v in vectors.unbind(1)], dim=1)
        self.matvecs += k
        residuals = (images.double() - vectors.double() * values.to(vectors.device)).norm(dim=0).cpu()
        converged = bool((residuals <= tol * values.abs().max()).all())
        return Eigenpairs(values, vectors, residuals, residuals.clone(), self.matvecs - before, converged)

    def trace(self, *, tol: float = 1e-3, max_matvecs: int = 100) -> Estimate:
        """The mean of its `trace()`, with the standard error of that mean (NaN for one draw); converged is said of that."""
        before = self.matvecs
        with self._peer() as peer:
            draws = torch.tensor(peer.trace(maxIter=max_matvecs, tol=tol), dtype=torch.float64)
        error = float(draws.std()) / math.sqrt(len(draws)) if len(draws) > 1 else math.nan
        value = float(draws.mean())
        return Estimate(value, error, self.matvecs - before, METHOD, error <= tol * abs(value))

    def density(self, *, steps: int = 80, vectors: int = 3) -> SpectralDensity:
        """Its `density(iter=steps, n_v=vectors)`, smoothed as ours is."""
        before = self.matvecs
        with self._peer() as peer:
            found, shares = peer.density(iter=min(steps, self.objective.num_params), n_v=vectors)
        nodes, weights = torch.tensor(found, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64)
        sigma, size = spanned(nodes) * WIDTH / steps, self.objective.num_params
        return smoothed(nodes, weights, sigma=sigma, grid=GRID, size=size, matvecs=self.matvecs - before)

    @contextmanager
    def _peer(self) -> Iterator[Any]:
        """A `pyhessian.hessian` on a copy of the model; whatever it does to torch is undone."""
        source = importlib.import_module("pyhessian.hessian")
        device, dtype = self.w.device, torch.get_default_dtype()
        size = self.objective.chunk_size(self.w)
        x = self.objective.x.to(self.w.dtype) if self.objective.x.is_floating_point() else self.objective.x
        y = self.objective.y.to(self.w.dtype) if self.objective.y.is_floating_point() else self.objective.y
        chunks = list(zip(x.split(size), y.split(size), strict=True))
        data = {"data": chunks[0]} if len(chunks) == 1 else {"dataloader": chunks}
        seed = int(torch.randint(2**62, (), generator=self._generator))
        model = _Copy(self.objective, self.w)
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            warnings.catch_warnings(),
            torch.enable_grad(),
            self._counted(source),
        ):
            warnings.simplefilter("ignore")  # of backward(create_graph=True), and of its syntax
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU
            if device.type == "cuda":
                torch.cuda.default_generators[self.w.get_device()].manual_seed(seed)
            torch.set_default_dtype(self.w.dtype)  # it draws its vectors in the default dtype
            try:
                yield source.hessian(model, self.objective.criterion, cuda=device.type == "cuda", **data)
            except (AssertionError, RuntimeError) as error:
                if any(told in str(error) for told in UNUSED):
                    raise ValueError("PyHessian cannot take a parameter that the loss does not depend on") from None
                raise
            finally:
                torch.set_default_dtype(dtype)
                model.zero_grad()  # breaks the cycle of a gradient with its own graph

    @contextmanager
    def _counted(self, source: Any) -> Iterator[None]:
        """Its products counted, and its `torch` one that still has `eig`."""
        kept: dict[str, Any] = {name: getattr(source, name) for name in ("torch", "hessian_vector_product")}
        loader = source.hessian.dataloader_hv_product

        def counted(product: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                self.matvecs += 1
                return product(*arguments)

            return call

        source.torch = SimpleNamespace(**{**vars(torch), "eig": _eig})
        source.hessian_vector_product = counted(kept["hessian_vector_product"])
        source.hessian.dataloader_hv_product = counted(loader)
        try:
            yield
        finally:
            source.torch, source.hessian_vector_product = kept["torch"], kept["hessian_vector_product"]
            source.hessian.dataloader_hv_product = loader


class _Copy(nn.Module):
    """A copy of the objective's model with the weights w, in the modes of the objective whatever is asked of it."""

    def __init__(self, objective: NetworkObjective, w: Tensor):
        super().__init__()
        self.batch_norm = objective.batch_norm
        self.copy = copy.deepcopy(objective.model).to(device=w.device, dtype=w.dtype)
        pieces = objective.layout.unflatten(w)
        for name, parameter in self.copy.named_parameters():
            parameter.grad = None
            if name in pieces:
                parameter.data = pieces[name].clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.copy(x)

    def train(self, mode: bool = True) -> "_Copy":
        """Eval mode; BatchNorm as the objective has it."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = self.batch_norm == "train"
        return self


def _eig(matrix: Tensor, eigenvectors: bool = True) -> tuple[Tensor, Tensor]:
    """What `torch.eig` gave for a symmetric matrix: eigenvalues (n, 2) with their imaginary parts, and eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors
