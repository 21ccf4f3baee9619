"""PyTorch's batch norm adds up in float32 in channels_last on a CPU: the smallest script that shows it.

    python benchmarks/pytorch_channels_last_batch_norm.py

The statistics of a training-mode batch norm over (N, C, H, W) are sums of N H W values for each channel. In
contiguous memory the CPU kernel adds them up in float64; in channels_last it keeps a float32 sum for each
channel and thread (`batch_norm_cpu_collect_stats_channels_last_impl` in
aten/src/ATen/native/cpu/batch_norm_kernel.cpp, and its backward), to which N H W / threads values are added
one after the other.
"""
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
print("PyTorch", torch.__version__, torch.backends.cpu.get_cpu_capability())
for n_patches in (2, 16, 64, 256):
    x = torch.randn(n_patches, 8, 100, 96) + 1
    variance = x.double().var((0, 2, 3), correction=0)
    for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        norm = torch.nn.BatchNorm2d(8, momentum=1.0)
        norm(x.to(memory_format=layout))
        n = x.numel() // 8
        error = (norm.running_var.double() * (n - 1) / n / variance - 1).abs().max().item()
        print(f"{n:9,d} values a channel, {name:13s}: the variance is off by {error:.0e}")
