"""A softmax mechanism given a law of mixed features: its dual, solved by integrals over the logits alone.

A law of states with one Gaussian vector each makes every moment of p(y|x) an integral over the logits in each state
(spec 2.5, discrete X in the causal direction; the scale dual of T1 is the case of one state).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from .closedform import largest_contrast, low_rank_root, normal_rule, softmax_rule
from .conditional_gaussian import TOLERANCE
from .directions import ClassTarget
from .errors import ConvergenceError, InfeasibleMomentsError
from .graph import _listed
from .mixed_model import Law
from .newton import Value, minimise

Array = NDArray[np.float64]
Index = NDArray[np.intp]


class _Nodes(NamedTuple):
    """Given state s, x = m_s + spread z + rest with z from a rule and the rest independent of the logits."""

    z: Array  # (s or 1, n, q)
    w: Array  # (s or 1, n)
    root: Array  # (K-1, q): logits = base_s theta' + z root'
    carry: Array  # (dx, q): V_OO^-1 spread, over the observed continuous features


class Gate:
    """The dual of p(y|x) = softmax over (1, f_O): minimise E log Z - <theta, moments> + ridge, theta (K-1, 1 + |O|).

    Class 0 is the reference. Features are centred and in units of their standard deviations. Given the state, logits
    are Gaussian, so that K = 2 needs one-dimensional integrals and K = 3 two-dimensional ones; E[x softmax] and the
    Hessian follow by regressing x on the logits (Stein's lemma). More classes use fixed Sobol points of x.
    """

    def __init__(self, law: Law, t: ClassTarget, O: Index, cov: Array, seed: int) -> None:
        self.t, self.O, self.seed, self.law = t, O, seed, law
        p = np.exp(law.log_p[0])
        self.alive = np.flatnonzero(p > 0)
        self.p = p[self.alive] / p[self.alive].sum()
        self.K1 = len(t.pi) - 1
        full = np.empty((len(self.alive), len(t.mu)))
        full[:, law.discrete] = law.states[self.alive]
        full[:, law.continuous] = law.means(self.alive)[0]
        self.full = full - t.mu
        self.sd = np.sqrt(cov.diagonal()[O])
        self.base = np.column_stack([np.ones(len(full)), self.full[:, O] / self.sd])
        place = {int(c): i for i, c in enumerate(law.continuous)}
        self.x_in_O = np.array([i for i, c in enumerate(O) if int(c) in place], dtype=np.intp)
        self.x_in_law = np.array([place[int(c)] for c in O[self.x_in_O]], dtype=np.intp)
        D = self.sd[self.x_in_O]
        self.V = law.cov[np.ix_(self.x_in_law, self.x_in_law)] / np.outer(D, D)
        self.goal = np.column_stack([t.pi, (t.C[O] / self.sd[:, None]).T])[1:]
        self.spread = cov[np.ix_(O, O)] / np.outer(self.sd, self.sd)
        values, vectors = np.linalg.eigh(self.spread)
        if len(O) and values[0] < 1e-11:
            same = [t.names[O[i]] for i in np.flatnonzero(np.abs(vectors[:, 0]) > 1e-3)]
            raise InfeasibleMomentsError(f"the features {_listed(same)} are redundant: drop one of them")

    def solve(self, ridge: float, factor: float) -> Array:
        """Multipliers (K-1, 1 + |O|); raises InfeasibleMomentsError if the dual has no minimum."""
        goal = self.goal.copy()
        goal[:, 1:] *= factor
        centring = np.eye(self.K1 + 1)[:, 1:] - self.t.pi[1:]
        # The scale of the logits is tr(theta Sigma theta') in the gauge sum_k pi_k theta_k = 0; for two classes tau^2.
        metric = np.eye(1) if self.K1 == 1 else centring.T @ centring
        penalty = np.zeros((self.K1, goal.shape[1], self.K1, goal.shape[1]))
        penalty[:, 1:, :, 1:] = ridge * np.einsum("ab,ij->aibj", metric, self.spread)
        flat_penalty = penalty.reshape(goal.size, goal.size)
        start = np.zeros_like(goal)
        start[:, 0] = np.log(self.t.pi[1:] / self.t.pi[0])

        def evaluate(flat: Array) -> Value:
            theta = flat.reshape(goal.shape)
            value, gradient, hessian = self._dual(theta)
            pull = flat_penalty @ flat
            return Value(
                value - float(np.vdot(goal, theta)) + 0.5 * float(flat @ pull), gradient.ravel() - goal.ravel() + pull,
                lambda: hessian + flat_penalty,
            )  # fmt: skip

        def diverges(flat: Array, _: float) -> bool:
            # D(s theta) = s (E max(0, eta) - <goal, theta>) + O(1): a certificate of infeasibility if negative.
            theta = flat.reshape(goal.shape)
            far = self.K1 > 1 and self._scale(theta) > 1e3
            return ridge == 0.0 and (
                far or self._largest(theta) - float(np.vdot(goal, theta)) < -1e-12 * float(np.abs(theta).max())
            )

        found, final, _ = minimise(evaluate, start.ravel(), diverges)
        error = float(np.abs(final.gradient).max())
        smallest = float(np.linalg.eigvalsh(final.hessian())[0])
        if diverges(found, 0.0) or (ridge == 0.0 and smallest < 1e-11):
            names = [self.t.names[i] for i in self.O]
            raise InfeasibleMomentsError(
                f"no logistic mechanism of {self.t.name} given {_listed(names)} has these moments under the maximum "
                f"entropy law of the features: its dual has no minimum (it stopped at a logit SD of "
                f"{self.tau(found.reshape(goal.shape)):.3g} and a moment error of {error:.3g} SDs)"
            )
        if error > TOLERANCE:
            raise ConvergenceError(f"the mechanism of {self.t.name} stopped at a moment error of {error:.3g} SDs")
        return found.reshape(goal.shape)

    def _x_weights(self, theta: Array) -> Array:
        return theta[:, 1:][:, self.x_in_O]

    def tau(self, theta: Array) -> float:
        """SD of a binary Y's logit over the joint law of X (largest contrast for more classes)."""
        return float(np.sqrt(max(np.linalg.eigvalsh(theta[:, 1:] @ self.spread @ theta[:, 1:].T)[-1], 0.0)))

    def _scale(self, theta: Array) -> float:
        return largest_contrast(theta[:, 1:] @ np.linalg.cholesky(self.spread)) if len(self.O) else 0.0

    def _nodes(self, theta: Array, part: slice) -> _Nodes:
        W, V = self._x_weights(theta), self.V
        if self.K1 == 1:
            root = np.sqrt(max(float((W @ V @ W.T)[0, 0]), 0.0)) * np.ones((1, 1))
            if root[0, 0] == 0.0:
                return _Nodes(np.zeros((1, 1, 0)), np.ones((1, 1)), np.zeros((1, 0)), np.zeros((len(V), 0)))
            z, w = normal_rule(self.base[part] @ theta[0], root[0, 0])
            return _Nodes(z[..., None], w, root, W.T / root)
        if self.K1 == 2 or len(V) <= 2:
            root = low_rank_root(W @ V @ W.T)
            carry = W.T @ np.linalg.pinv(root).T
        else:
            root, carry = W @ np.linalg.cholesky(V), np.linalg.inv(np.linalg.cholesky(V)).T
        if root.shape[1] == 0:
            return _Nodes(np.zeros((1, 1, 0)), np.ones((1, 1)), root, carry)
        moving = self.K1 == 2 or len(V) <= 2
        z, w = softmax_rule(root.shape[1], largest_contrast(root), self.seed) if moving else self._sobol
        return _Nodes(z[None], w[None], root, carry)

    @cached_property
    def _sobol(self) -> tuple[Array, Array]:
        z, w = softmax_rule(max(len(self.V), 4), 1.0, self.seed)
        z, w = z[:, : len(self.V)], w
        n = max(2**9, min(len(z), 2**20 // len(self.p)))
        z = z[:n] - z[:n].mean(axis=0)
        return np.linalg.solve(np.linalg.cholesky(z.T @ z / n), z.T).T, np.full(n, 1.0 / n)

    def _chunks(self, theta: Array) -> Iterator[tuple[slice, _Nodes, Array]]:
        """States, their nodes, and logits (s, n, K-1)."""
        wide = 496 if self.K1 == 1 else max(self._nodes(theta, slice(0, 1)).z.shape[1], 1)
        step = max(1, 2**19 // (wide * self.K1))
        for first in range(0, len(self.p), step):
            part = slice(first, first + step)
            nodes = self._nodes(theta, part)
            yield part, nodes, (self.base[part] @ theta.T)[:, None, :] + nodes.z @ nodes.root.T

    def _dual(self, theta: Array) -> tuple[float, Array, Array]:
        """E log Z, its gradient (K-1, J) and Hessian ((K-1) J, (K-1) J)."""
        J = theta.shape[1]
        value, gradient = 0.0, np.zeros_like(theta)
        hessian = np.zeros((self.K1, J, self.K1, J))
        x_places = 1 + self.x_in_O
        for part, nodes, eta in self._chunks(theta):
            p, base = self.p[part], self.base[part]
            log_z, q = _partition(eta)
            value += float(p @ (nodes.w * log_z).sum(axis=1))
            lift = np.zeros((J, nodes.z.shape[2]))  # x = m_s + lift z + rest
            lift[x_places] = self.V @ nodes.carry
            rest = self.V - lift[x_places] @ lift[x_places].T

            def average(f: Array, p: Array = p, nodes: _Nodes = nodes) -> tuple[Array, Array, Array]:
                """E[f], E[f z], E[f z z'] of f (s, n): per state, per state, and summed over states."""
                weighted = f * nodes.w * p[:, None]
                z = np.broadcast_to(nodes.z, (*f.shape, nodes.z.shape[2]))
                first = np.einsum("sn,snq->sq", weighted, z)
                return weighted.sum(axis=1), first, np.einsum("sn,snq,snr->qr", weighted, z, z)

            for a in range(self.K1):
                zeroth, first, _ = average(q[..., a])
                gradient[a] += zeroth @ base + lift @ first.sum(axis=0)
                for b in range(a, self.K1):
                    zeroth, first, second = average(q[..., a] * ((a == b) - q[..., b]))
                    block = (base * zeroth[:, None]).T @ base + lift @ second @ lift.T
                    cross = base.T @ first @ lift.T
                    block += cross + cross.T
                    block[np.ix_(x_places, x_places)] += zeroth.sum() * rest
                    hessian[a, :, b, :] += block
                    if b > a:
                        hessian[b, :, a, :] += block.T
        return value, gradient, hessian.reshape(theta.size, theta.size)

    def _largest(self, theta: Array) -> float:
        """E max(0, max_k eta_k)."""
        parts = self._chunks(theta)
        return sum(float(self.p[s] @ (nodes.w * eta.max(axis=2).clip(min=0.0)).sum(axis=1)) for s, nodes, eta in parts)

    def logits(self, theta: Array) -> tuple[Array, Array]:
        """Intercepts (K,) and coefficients (K, d) of all features, class 0 at zero."""
        coef = np.zeros((self.K1 + 1, len(self.t.mu)))
        coef[1:, self.O] = theta[:, 1:] / self.sd
        return np.concatenate([[0.0], theta[:, 0]]) - coef @ self.t.mu, coef

    def implied(self, theta: Array) -> tuple[Array, float]:
        """Covariances (d, K) of every feature with the classes, and E H(Y|X)."""
        C, entropy = np.zeros((len(self.t.mu), self.K1 + 1)), 0.0
        law = self.law
        D = self.sd[self.x_in_O]
        for part, nodes, eta in self._chunks(theta):
            p = self.p[part]
            log_z, q = _partition(eta)
            log_q = np.concatenate([-log_z[..., None], eta - log_z[..., None]], axis=2)
            every = np.concatenate([np.exp(-log_z)[..., None], q], axis=2)
            weighted = every * (nodes.w * p[:, None])[..., None]
            z = np.broadcast_to(nodes.z, (*eta.shape[:2], nodes.z.shape[2]))
            C += self.full[part].T @ weighted.sum(axis=1)
            C[law.continuous] += (law.cov[:, self.x_in_law] / D) @ nodes.carry @ np.einsum("snq,snk->qk", z, weighted)
            entropy -= float((weighted * log_q).sum())
        return C, entropy


def _partition(eta: Array) -> tuple[Array, Array]:
    """log(1 + sum_k exp eta_k) (s, n) and the probabilities of classes 1 … K-1 (s, n, K-1)."""
    log_z = np.logaddexp(0.0, eta[..., 0]) if eta.shape[2] == 1 else np.logaddexp(0.0, logsumexp(eta, axis=2))
    return log_z, np.exp(eta - log_z[..., None])


def gauge(intercept: Array, coef: Array, t: ClassTarget) -> tuple[Array, Array]:
    """Two classes: class 0 at zero. More: sum_k pi_k coef_k = 0, and logits at the mean of x that average to zero."""
    if len(t.pi) == 2:
        return intercept - intercept[0], coef - coef[0]
    coef = coef - t.pi @ coef
    return intercept - t.pi @ (intercept + coef @ t.mu), coef
