"""EDM's two U-Nets in PyTorch, written anew for the tests from the description of the architectures.

State dicts have EDM's names, so they stand in for the published weights.
"""

import math
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

SONG = SimpleNamespace(song=True, adaptive=False, skip_scale=math.sqrt(0.5), eps=1e-6, project_resampled=True)
ADM = SimpleNamespace(song=False, adaptive=True, skip_scale=1.0, eps=1e-5, project_resampled=False)


def norm(channels, eps):
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class Block(nn.Module):
    def __init__(self, into, out, emb, style, resample=None, attention=False):
        super().__init__()
        self.style, self.resample, self.attention = style, resample, attention
        self.norm0, self.norm1 = norm(into, style.eps), norm(out, style.eps)
        self.conv0, self.conv1 = nn.Conv2d(into, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.affine = nn.Linear(emb, out * (2 if style.adaptive else 1))
        if into != out or (resample and style.project_resampled):
            self.skip = nn.Conv2d(into, out, 1)
        if attention:
            self.heads = 1 if style.song else out // 64
            self.norm2, self.qkv, self.proj = norm(out, style.eps), nn.Conv2d(out, 3 * out, 1), nn.Conv2d(out, out, 1)

    def resize(self, x):
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x, emb):
        h = self.conv0(self.resize(F.silu(self.norm0(x))))
        e = self.affine(emb)[:, :, None, None]
        if self.style.adaptive:
            scale, shift = e.chunk(2, 1)
            h = F.silu(self.norm1(h) * (1 + scale) + shift)
        else:
            h = F.silu(self.norm1(h + e))
        x = self.resize(x)
        x = (self.conv1(h) + (self.skip(x) if hasattr(self, "skip") else x)) * self.style.skip_scale
        if self.attention:
            n, c, height, width = x.shape
            # EDM's channels run over heads, then channels of a head, then query, key and value.
            qkv = self.qkv(self.norm2(x)).reshape(n, self.heads, c // self.heads, 3, height * width)
            q, k, v = (qkv[:, :, :, i].transpose(2, 3) for i in range(3))
            a = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
            x = (x + self.proj(a)) * self.style.skip_scale
        return x


class UNet(nn.Module):
    def __init__(self, style, size, channels, base, mult, blocks, attention, labels=0, augment=0):
        super().__init__()
        self.style, self.base, self.labels, emb = style, base, labels, 4 * base
        if labels:
            self.map_label = nn.Linear(labels, base if style.song else emb, bias=style.song)
        if augment:
            self.map_augment = nn.Linear(augment, base, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(base, emb), nn.Linear(emb, emb)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc[f"{size}x{size}_conv"] = nn.Conv2d(channels, base, 3, padding=1)
        now, skips = base, [base]
        for level, factor in enumerate(mult):
            res = size // 2**level
            if level > 0:
                self.enc[f"{res}x{res}_down"] = Block(now, now, emb, style, "down")
                skips.append(now)
            for i in range(blocks):
                self.enc[f"{res}x{res}_block{i}"] = Block(now, base * factor, emb, style, attention=res in attention)
                now = base * factor
                skips.append(now)
        for level in range(len(mult) - 1, -1, -1):
            res, factor = size // 2**level, mult[level]
            if level == len(mult) - 1:
                self.dec[f"{res}x{res}_in0"] = Block(now, now, emb, style, attention=True)
                self.dec[f"{res}x{res}_in1"] = Block(now, now, emb, style)
            else:
                self.dec[f"{res}x{res}_up"] = Block(now, now, emb, style, "up")
            for i in range(blocks + 1):
                attends = res in attention and (i == blocks or not style.song)
                into, now = now + skips.pop(), base * factor
                self.dec[f"{res}x{res}_block{i}"] = Block(into, now, emb, style, attention=attends)
        last = (norm(now, style.eps), nn.Conv2d(now, channels, 3, padding=1))
        if style.song:
            self.dec[f"{size}x{size}_aux_norm"], self.dec[f"{size}x{size}_aux_conv"] = last
        else:
            self.out_norm, self.out_conv = last

    def embed(self, noise, one_hot, augment):
        half = self.base // 2
        spacing = half - 1 if self.style.song else half
        angle = noise[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / spacing)
        if self.style.song:
            e = torch.cat([angle.sin(), angle.cos()], 1)
            if self.labels:
                e = e + self.map_label(one_hot * math.sqrt(self.labels))
        else:
            e = torch.cat([angle.cos(), angle.sin()], 1)
        if augment is not None:
            e = e + self.map_augment(augment)
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if self.labels and not self.style.song:
            e = e + self.map_label(one_hot)
        return F.silu(e)

    def forward(self, x, noise, one_hot=None, augment=None):
        emb, skips = self.embed(noise, one_hot, augment), []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, Block) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            if "aux" in name:
                x = F.silu(block(x)) if "norm" in name else block(x)
            else:
                x = block(torch.cat([x, skips.pop()], 1) if "block" in name else x, emb)
        return x if self.style.song else self.out_conv(F.silu(self.out_norm(x)))


def randomize(net, seed):
    """Every parameter at random, so that no transposition or exchange goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            fan = max(1, p[0].numel()) if p.ndim > 1 else 4
            p.copy_(torch.randn(p.shape, generator=generator) / math.sqrt(fan) + ("norm" in name and "weight" in name))
    return net.eval()


def denoise(net, x, sigma, one_hot=None, augment=None, sigma_data=0.5):
    """EDM's eq. 7 with table 1, in the dtype of x; x (n, c, h, w), sigma (n,)."""
    s = sigma[:, None, None, None]
    total = s**2 + sigma_data**2
    f = net(x / total.sqrt(), sigma.log() / 4, one_hot, augment)
    return x * sigma_data**2 / total + f * s * sigma_data / total.sqrt()
