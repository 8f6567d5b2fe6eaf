"""KerasHub's networks, small and with random weights: trained, compressed, exported.

`python3 -m pip install -e ".[test,hub]"`, then `python3 -m pytest -m every tests/test_keras_hub.py`; or, for the table
of docs/keras_hub.md, `python3 tests/test_keras_hub.py`.
"""

import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings

import keras
import numpy as np
import pytest

import keras_rda
from keras_rda.compression import classes
from keras_rda.litert import signature

keras_hub = pytest.importorskip("keras_hub", reason='KerasHub is not installed: pip install -e ".[hub]"')
models = keras_hub.models

LENGTH, AUDIO, TOKENS = 12, 1200, 50
IMAGE = (32, 32, 3)
TEXT = {"vocabulary_size": TOKENS, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32}
GROUPED = {"vocabulary_size": TOKENS, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2} | {
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
VISION = {"patch_size": 8, "num_layers": 2, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32}


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone, what share of the parameters is left when half of the channels that can go are dead, and which of
    TensorFlow's own operations `export` refuses it for."""

    make: object
    left: float
    refused: str = ""


def resnet():
    return models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64, 64],
        stackwise_num_blocks=[2, 2, 2],
        stackwise_num_strides=[1, 2, 2],
        block_type="basic_block",
        image_shape=IMAGE,
    )


def efficientnet():
    return models.EfficientNetBackbone(
        stackwise_width_coefficients=[0.5] * 3,
        stackwise_depth_coefficients=[0.5] * 3,
        stackwise_kernel_sizes=[3] * 3,
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[16, 16, 24],
        stackwise_output_filters=[16, 24, 40],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.25] * 3,
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["v1"] * 3,
        stackwise_force_input_filters=[0] * 3,
        stackwise_nores_option=[False] * 3,
        image_shape=IMAGE,
    )


def mobilenet():
    return models.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [1, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=32,
        input_num_filters=8,
        input_activation="hard_swish",
        output_activation="hard_swish",
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=64,
        squeeze_and_excite=0.25,
        image_shape=IMAGE,
    )


def hgnet():
    return models.HGNetV2Backbone(
        depths=[1, 1],
        embedding_size=8,
        hidden_sizes=[16, 32],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=False,
        stackwise_stage_filters=[[8, 8, 16, 1, 2, 3], [16, 8, 32, 1, 2, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        image_shape=IMAGE,
    )


def mit(depths, hidden_dims, image_shape=IMAGE):
    return models.MiTBackbone(
        layerwise_depths=[1] * depths,
        num_layers=depths,
        layerwise_num_heads=[1, 2, 2, 2][:depths],
        layerwise_sr_ratios=[2, 1, 1, 1][:depths],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3][:depths],
        layerwise_strides=[4, 2, 2, 2][:depths],
        image_shape=image_shape,
        hidden_dims=hidden_dims,
    )


def smollm():
    return models.SmolLMBackbone(
        vocabulary_size=TOKENS,
        hidden_dim=16,
        intermediate_dim=32,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=False,
        attention_dropout=0.0,
        rope_layer_enabled_list=[True, True],
        layer_types=["attention", "attention"],
        mlp_bias=False,
        layer_norm_epsilon=1e-5,
        max_position_embeddings=LENGTH,
        rope_theta=10000.0,
        partial_rotary_factor=1.0,
    )


def moonshine():
    return models.MoonshineBackbone(
        vocabulary_size=TOKENS,
        filter_dim=16,
        encoder_num_layers=2,
        decoder_num_layers=2,
        hidden_dim=16,
        intermediate_dim=32,
        encoder_num_heads=2,
        decoder_num_heads=2,
    )


def fixed(make):
    """With inputs of one size, without which most decoders of texts cannot be read."""

    def made():
        model = make()
        return signature.sized(model, {tensor.name: shape(tensor) for tensor in model.inputs})

    return made


def shape(tensor):
    length = IMAGE[0] if len(tensor.shape) == 4 else AUDIO if "values" in tensor.name else LENGTH
    return [length if size is None else size for size in tensor.shape[1:]]


# What stays at 1.00 has a wall around its units, with its reason in the report's notes.
NETWORKS = {
    "CSPNet": Network(
        lambda: models.CSPNetBackbone(
            stem_filters=8,
            stem_kernel_size=3,
            stem_strides=1,
            stackwise_depth=[1, 2],
            stackwise_strides=[1, 2],
            stackwise_num_filters=[16, 32],
            stage_type="dark",
            block_type="dark_block",
            image_shape=IMAGE,
        ),
        0.48,
    ),
    "DenseNet": Network(lambda: models.DenseNetBackbone([2, 2], image_shape=IMAGE, growth_rate=8), 0.44),
    "EfficientNet": Network(fixed(efficientnet), 0.51),
    "HGNetV2": Network(hgnet, 0.42),
    "MobileNet": Network(mobilenet, 0.33),
    "ResNet": Network(resnet, 0.32),
    "RetinaNet": Network(lambda: models.RetinaNetBackbone(resnet(), 2, 4, False, image_shape=IMAGE), 0.45),
    "VGG": Network(lambda: models.VGGBackbone([1, 2], [16, 32], image_shape=IMAGE), 0.42),
    "Xception": Network(
        lambda: models.XceptionBackbone(
            stackwise_conv_filters=[[8, 16], [16, 16], [24, 24]],
            stackwise_pooling=[True, False, False],
            image_shape=IMAGE,
        ),
        0.38,
    ),
    "DeiT": Network(lambda: models.DeiTBackbone(IMAGE, 8, 2, 2, 16, 32), 0.73),
    "DINOv2": Network(lambda: models.DINOV2Backbone(**VISION, image_shape=IMAGE, position_embedding_shape=IMAGE), 0.74),
    "DINOv3": Network(lambda: models.DINOV3Backbone(**VISION, image_shape=IMAGE), 0.86),
    "MiT": Network(lambda: mit(2, [16, 32]), 0.75),
    "SegFormer": Network(lambda: models.SegFormerBackbone(mit(4, [16, 24, 32, 40], (64, 64, 3)), 16), 0.76),
    "Swin": Network(
        lambda: models.SwinTransformerBackbone(
            image_shape=IMAGE, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4, patch_size=2
        ),
        1.0,
        "Roll",
    ),
    "ViT": Network(lambda: models.ViTBackbone(IMAGE, (8, 8), 2, 2, 16, 32), 0.73),
    "ViTDet": Network(
        lambda: models.ViTDetBackbone(
            hidden_size=16,
            num_layers=2,
            intermediate_dim=32,
            num_heads=2,
            global_attention_layer_indices=[1],
            image_shape=IMAGE,
            patch_size=8,
            num_output_channels=16,
            window_size=2,
        ),
        0.95,
    ),
    "ALBERT": Network(
        fixed(
            lambda: models.AlbertBackbone(
                vocabulary_size=TOKENS,
                num_layers=2,
                num_heads=2,
                embedding_dim=8,
                hidden_dim=16,
                intermediate_dim=32,
                max_sequence_length=LENGTH,
            )
        ),
        0.66,
    ),
    "BART": Network(fixed(lambda: models.BartBackbone(**TEXT, max_sequence_length=LENGTH)), 0.57),
    "BERT": Network(fixed(lambda: models.BertBackbone(**TEXT, max_sequence_length=LENGTH)), 0.63),
    "BLOOM": Network(fixed(lambda: models.BloomBackbone(**TEXT)), 0.8),
    "DeBERTaV3": Network(
        fixed(lambda: models.DebertaV3Backbone(**TEXT, max_sequence_length=LENGTH, bucket_size=4)), 0.81
    ),
    "DistilBERT": Network(fixed(lambda: models.DistilBertBackbone(**TEXT, max_sequence_length=LENGTH)), 0.61),
    "ELECTRA": Network(
        fixed(
            lambda: models.ElectraBackbone(
                vocab_size=TOKENS,
                num_layers=2,
                num_heads=2,
                hidden_dim=16,
                embedding_dim=8,
                intermediate_dim=32,
                max_sequence_length=LENGTH,
            )
        ),
        0.61,
    ),
    "ESM": Network(fixed(lambda: models.ESMBackbone(**TEXT)), 0.8),
    "Falcon": Network(
        fixed(
            lambda: models.FalconBackbone(
                vocabulary_size=TOKENS, num_layers=2, num_attention_heads=2, hidden_dim=16, intermediate_dim=32
            )
        ),
        0.8,
    ),
    "FNet": Network(
        fixed(
            lambda: models.FNetBackbone(
                vocabulary_size=TOKENS, num_layers=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=LENGTH
            )
        ),
        0.73,
        "FFT2D",
    ),
    "Gemma": Network(fixed(lambda: models.GemmaBackbone(**GROUPED, head_dim=8)), 1.0),
    "GPT-2": Network(fixed(lambda: models.GPT2Backbone(**TEXT, max_sequence_length=LENGTH)), 0.61),
    "GPT-NeoX": Network(fixed(lambda: models.GPTNeoXBackbone(**TEXT)), 0.8),
    "Llama": Network(fixed(lambda: models.LlamaBackbone(**GROUPED)), 0.63),
    "Llama 3": Network(fixed(lambda: models.Llama3Backbone(**GROUPED)), 0.63),
    "Mistral": Network(fixed(lambda: models.MistralBackbone(**GROUPED)), 0.63),
    "Mixtral": Network(fixed(lambda: models.MixtralBackbone(**GROUPED, num_experts=2, top_k=1)), 0.92),
    "OPT": Network(fixed(lambda: models.OPTBackbone(**TEXT, max_sequence_length=LENGTH)), 0.61),
    "Phi-3": Network(fixed(lambda: models.Phi3Backbone(**GROUPED)), 0.63),
    "Qwen": Network(fixed(lambda: models.QwenBackbone(**GROUPED)), 0.58),
    "Qwen3": Network(fixed(lambda: models.Qwen3Backbone(**GROUPED, head_dim=8)), 0.56),
    "RoBERTa": Network(fixed(lambda: models.RobertaBackbone(**TEXT, max_sequence_length=LENGTH)), 0.61),
    "RoFormerV2": Network(fixed(lambda: models.RoformerV2Backbone(**TEXT, head_size=8)), 0.8),
    "RWKV7": Network(
        fixed(
            lambda: models.RWKV7Backbone(
                hidden_size=16,
                head_size=8,
                num_layers=2,
                vocabulary_size=TOKENS,
                intermediate_dim=32,
                gate_lora=8,
                mv_lora=8,
                aaa_lora=8,
                decay_lora=8,
            )
        ),
        1.0,
        "TensorList",
    ),
    "SmolLM": Network(fixed(smollm), 1.0),
    "T5": Network(fixed(lambda: models.T5Backbone(**TEXT)), 0.89),
    "XLM-RoBERTa": Network(fixed(lambda: models.XLMRobertaBackbone(**TEXT, max_sequence_length=LENGTH)), 0.61),
    "XLNet": Network(fixed(lambda: models.XLNetBackbone(**TEXT)), 1.0),
    "Moonshine": Network(fixed(moonshine), 0.9),
    "Whisper": Network(
        fixed(
            lambda: models.WhisperBackbone(
                **TEXT, num_mels=8, max_encoder_sequence_length=16, max_decoder_sequence_length=LENGTH
            )
        ),
        0.56,
    ),
}
IN_FLOAT32 = {"Moonshine", "T5", "Whisper"}  # in float64 they fail by themselves, or take inputs of float32


@dataclasses.dataclass(frozen=True)
class Measured:
    """What became of a network: the share of its parameters that is left, the largest difference of its outputs over
    their largest value, the export's bytes or its refusal, and what the report notes."""

    left: float
    difference: float
    exported: str
    notes: tuple[str, ...]


def measure(name, folder):
    """Train three steps with `XRDA`, kill half of the channels that can go, compress, compare, export."""
    model = NETWORKS[name].make()
    batch = inputs_of(model)
    train(model, batch)
    kill(model)
    smaller, report = keras_rda.compress(model, report=True)
    difference = largest_difference(model, smaller, batch) if name in IN_FLOAT32 else in_float64(name, model, batch)
    try:
        exported = f"{keras_rda.export(smaller, pathlib.Path(folder, 'model.tflite')).bytes:,} bytes"
    except (keras_rda.ExportError, ValueError) as error:
        exported = f"{type(error).__name__}: {error}"
    return Measured(smaller.count_params() / model.count_params(), difference, exported, report.notes)


def in_float64(name, model, batch):
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    try:
        precise = NETWORKS[name].make()
        precise.set_weights(model.get_weights())
        batch = {key: array.astype("float64") if array.dtype == "float32" else array for key, array in batch.items()}
        return largest_difference(precise, keras_rda.compress(precise), batch)
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(floatx)


def inputs_of(model):
    random, batch = np.random.default_rng(0), {}
    for tensor in model.inputs:
        sizes = [2, *shape(tensor)]
        if "mask" in tensor.name:
            array = np.ones(sizes)
        elif "int" in tensor.dtype or "ids" in tensor.name:
            array = random.integers(0, 2 if "segment" in tensor.name else TOKENS, sizes)
        else:
            array = random.normal(size=sizes)
        batch[tensor.name] = array.astype(tensor.dtype)
    return batch


def fed(model, batch):
    """The batch in the structure of the inputs of a model, which may have renamed its only one."""
    return keras.tree.pack_sequence_as(model.input, list(batch.values()))


def train(model, batch):
    """By the mean of the squares of all outputs."""
    outputs = [keras.ops.reshape(keras.ops.cast(x, "float32"), (-1, 1)) for x in keras.tree.flatten(model.output)]
    trained = keras.Model(model.inputs, [keras.ops.mean(keras.ops.square(x), keepdims=True) for x in outputs])
    trained.compile(keras_rda.XRDA(0.01, 1e-4), loss="mse", jit_compile=False)
    for _ in range(3):
        trained.train_on_batch(list(batch.values()), [np.zeros((1, 1), "float32")] * len(outputs))


def kill(model):
    """Zero what reads every second of the channels that can go."""
    found = classes.read(model)
    dead = np.zeros(found.number + 1, bool)  # the last: of no class
    dead[: found.number : 2] = True
    for kernel in found.kernels:
        gone = np.broadcast_to(dead[kernel.reads], kernel.variable.shape)
        kernel.variable.assign(np.where(gone, 0, keras.ops.convert_to_numpy(kernel.variable)))


def largest_difference(model, smaller, batch):
    found = []
    outputs = [keras.tree.flatten(each(fed(each, batch), training=False)) for each in (model, smaller)]
    for a, b in zip(*outputs, strict=True):
        a, b = (keras.ops.convert_to_numpy(array).astype("float64") for array in (a, b))
        found.append(np.abs(a - b).max() / max(np.abs(a).max(), 1e-9))
    return max(found)


@pytest.mark.every
@pytest.mark.filterwarnings("ignore")  # KerasHub's and TensorFlow's own
@pytest.mark.parametrize("name", NETWORKS)
def test_a_backbone(name, tmp_path):
    keras.utils.set_random_seed(0)
    measured = measure(name, tmp_path)
    assert measured.difference <= (1e-5 if name in IN_FLOAT32 else 1e-6)
    assert measured.left == pytest.approx(NETWORKS[name].left, abs=0.01)
    if measured.left == 1:
        assert measured.notes
    if refused := NETWORKS[name].refused:
        assert re.match(rf"ExportError: The converter could not express .*{refused}", measured.exported)
    else:
        assert re.fullmatch(r"[\d,]+ bytes", measured.exported)


VIT_B = """
import resource, time
import numpy as np, keras, keras_hub, keras_rda
model = keras_hub.models.ViTBackbone((224, 224, 3), (16, 16), 12, 12, 768, 3072)
for variable in model.trainable_variables:
    if "dense_1/kernel" in variable.path:  # the first of each feed-forward part
        array = keras.ops.convert_to_numpy(variable).copy()
        array[:, ::2] = 0
        variable.assign(array)
weights = 4 * model.count_params()
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = peak(), time.perf_counter()
smaller = keras_rda.compress(model)
print(weights, time.perf_counter() - start, peak() - before, smaller.count_params() / model.count_params())
"""


@pytest.mark.every
def test_a_vision_transformer_of_86_million_weights():
    """In under a minute, and under three times its memory."""
    done = subprocess.run([sys.executable, "-c", VIT_B], check=True, capture_output=True, text=True)
    weights, seconds, memory, left = map(float, done.stdout.split()[-4:])
    print(f"{weights / 4e6:.0f} M weights, {left:.2f} left: {seconds:.0f} s, {memory / weights:.1f} times its bytes")
    assert weights > 85e6 * 4
    assert seconds < 60
    assert memory < 3 * weights
    assert left < 0.75


def main():
    print("| network | parameters left | largest difference | file |\n|---|---|---|---|")
    for name in sys.argv[1:] or NETWORKS:
        keras.utils.set_random_seed(0)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                measured = measure(name, folder)
            except Exception as error:
                print(f"| {name} | FAILED {type(error).__name__}: {str(error)[:500]}")
                continue
        print(f"| {name} | {measured.left:.2f} | {measured.difference:.0g} | {measured.exported[:160]} |", flush=True)


if __name__ == "__main__":
    main()
