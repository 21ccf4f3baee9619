"""The released code's way of doing things, after its description and in our own words.

It computes what the package computes, so it also serves as a check: `tests/test_benchmark.py` has the two
side by side.
"""
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, relu
from torch.nn.utils import skip_init

from acl_paper.features import FeatureConfig, FeatureStore
from acl_paper.log_mel import log_mel_literal
from acl_paper.patches import Scaler, test_patch_starts
from acl_paper.networks import NetworkOutput, PaperCNN

PATCH_FRAMES = 100


class ReferenceCNN(PaperCNN):
    "`PaperCNN` with every operation as written in the paper's description, by PyTorch's own kernels."

    def __init__(self, *sizes, **settings):
        super().__init__(*sizes, **settings)
        use_plain_convolution(self)

    def forward(self, patches: Tensor) -> NetworkOutput:
        """Logits and embedding of patches (B, 1, T, F)."""
        x = self.conv1(relu(self.norm1(patches)))
        x = self.pool(relu(self.norm2(x)))
        x = self.conv2(relu(self.norm22(x)))
        x = self.pool(relu(self.norm3(x)))
        x = self.conv3(relu(self.norm33(x)))
        hidden = self.dropout(relu(self.norm4(x)).flatten(1))
        hidden = relu(self.linear1(hidden))
        return NetworkOutput(self.linear2(self.dropout(hidden)), x.amax(dim=(2, 3)))


def use_plain_convolution(network: PaperCNN) -> None:
    """Let PyTorch compute all gradients of the first convolution, whose weights stay."""
    plain = skip_init(nn.Conv2d, 1, 24, kernel_size=5, padding=2)
    plain.load_state_dict(network.conv1.state_dict())
    network.conv1 = plain


def reference_angular_loss(features: Tensor, labels: Tensor, margin_rad: float = 0.5) -> Tensor:
    """The angular margin loss with its mask of same-class pairs filled one by one.

    Parameters
    ----------
    features : Tensor
        (B, D) embeddings.
    labels : Tensor
        (B,) class numbers.
    margin_rad : float
        Margin in radians.

    Returns
    -------
    Tensor
        A scalar: the sum over all ordered pairs divided by 50, the released code's constant.
    """
    same = torch.zeros(len(labels), len(labels), device=features.device)
    for i in range(len(labels)):
        for j in range(len(labels)):
            if labels[i] == labels[j]:
                same[i, j] = 1
    unit = normalize(features, dim=1)
    theta = (unit @ unit.T).clamp(-1 + 1e-7, 1 - 1e-7).acos()
    pairs = same * theta**2 + (1 - same) * relu(margin_rad - theta) ** 2
    return (pairs.sum() - pairs.diagonal().sum()) / 50


class ReferencePatches(torch.utils.data.Dataset):
    """Patches that are read from the feature store one by one, opening it each time.

    Parameters
    ----------
    path : Path
        The feature store's file.
    starts : ndarray
        (P,) first frame of each patch in the store.
    labels : ndarray
        (P,) class numbers.
    scaler : Scaler
        Standardises each patch when it is read.
    """

    def __init__(self, path: Path, starts: np.ndarray, labels: np.ndarray, scaler: Scaler):
        self.path = path
        self.starts = starts
        self.labels = labels
        self.scaler = scaler

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        start = self.starts[row]
        with h5py.File(self.path, "r") as file:
            patch = file["frames"][start:start + PATCH_FRAMES]
        return torch.from_numpy(self.scaler(patch))[None], int(self.labels[row])


def reference_epoch(
    model: PaperCNN,
    data: ReferencePatches,
    optimiser: torch.optim.Optimizer,
    *,
    alpha: float = 0.5,
    device: str = "cpu",
) -> list[float]:
    """One pass over the data in batches of 64.

    Parameters
    ----------
    model : PaperCNN
        On `device`, in training mode.
    data : ReferencePatches
        What is trained on.
    optimiser : Optimizer
        Of the model's parameters.
    alpha : float
        Weight of the cross-entropy.
    device : str
        Where the batches are moved to.

    Returns
    -------
    list of float
        The total loss of every step.
    """
    losses = []
    for patches, labels in torch.utils.data.DataLoader(data, batch_size=64, shuffle=True, drop_last=True):
        patches = patches.to(device)
        labels = labels.to(device)
        optimiser.zero_grad()
        logits, embedding = model(patches)
        angular = reference_angular_loss(embedding, labels)
        loss = alpha * cross_entropy(logits, labels) + (1 - alpha) * angular
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def reference_evaluation(
    model: PaperCNN, store: FeatureStore, clips: pd.DataFrame, scaler: Scaler, device: str = "cpu"
) -> list[int]:
    """Predicted labels, one clip at a time.

    Parameters
    ----------
    model : PaperCNN
        On `device`, in evaluation mode.
    store : FeatureStore
        Where the clips' frames are.
    clips : DataFrame
        The clips to predict; its index is that of the store's table.
    scaler : Scaler
        Standardises the frames.
    device : str
        Where the patches are moved to.

    Returns
    -------
    list of int
        The class number with the largest sum of probabilities over a clip's patches.
    """
    predictions = []
    for clip in clips.index:
        row = store.clips.loc[clip]
        with h5py.File(store.path, "r") as file:
            frames = scaler(file["frames"][row.offset:row.offset + row.n_frames])
        starts = test_patch_starts(len(frames))
        patches = np.stack([frames[start:start + PATCH_FRAMES] for start in starts])[:, None]
        logits = model(torch.from_numpy(patches).to(device)).logits
        predictions.append(int(logits.softmax(1).sum(0).argmax()))
    return predictions


def reference_preparation(store: FeatureStore, starts: np.ndarray) -> np.ndarray:
    """Training patches, stacked and standardised by scikit-learn.

    Parameters
    ----------
    store : FeatureStore
        Where the frames are.
    starts : ndarray
        (P,) first frame of each patch.

    Returns
    -------
    ndarray
        (P, 100, n_mels) float64.
    """
    from sklearn.preprocessing import StandardScaler

    with h5py.File(store.path, "r") as file:
        patches = np.stack([file["frames"][start:start + PATCH_FRAMES] for start in starts])
    patches = patches.astype(np.float64)
    flat = patches.reshape(-1, patches.shape[2])
    return StandardScaler().fit(flat).transform(flat).reshape(patches.shape)


def reference_extraction(paths: list[Path], target: Path, config: FeatureConfig = FeatureConfig()) -> None:
    """Write the log-mel frames of audio files into one HDF5 file, one data set for each of them.

    Parameters
    ----------
    paths : list of Path
        The audio files.
    target : Path
        The file to write.
    config : FeatureConfig
        Rate, bands, windows.
    """
    import librosa

    shortest = round(config.min_duration_s * config.sample_rate)
    with h5py.File(target, "w") as file:
        for path in paths:
            y, _ = librosa.load(path, sr=config.sample_rate, dtype=np.float64)
            y = y - y.mean()
            y = y / (max(abs(y)) + config.peak_offset)
            file[path.name] = log_mel_literal(np.resize(y, max(len(y), shortest)), config)
