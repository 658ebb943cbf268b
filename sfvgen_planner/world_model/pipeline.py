"""The video world model: a diffusers pipeline that imagines the next frames (paper section 3.1)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from sfvgen_planner.errors import SfvgenError, require, require_count
from sfvgen_planner.files import prepare_folder, writing_errors
from sfvgen_planner.world_model.actions import action_bounds, normalise_actions, planned_frames
from sfvgen_planner.world_model.base_model import fit_image_size, fit_unet, latent_geometry
from sfvgen_planner.world_model.batch_runner import BatchRunner
from sfvgen_planner.world_model.checkpoint import (
    COMPONENTS,
    check_folder,
    finish_folder,
    loading_errors,
    quiet_libraries,
)
from sfvgen_planner.world_model.conditioning import condition_planes
from sfvgen_planner.world_model.cuda_graphs import GraphPool
from sfvgen_planner.world_model.denoiser import Denoiser
from sfvgen_planner.world_model.fast_sampling import FastSampling
from sfvgen_planner.world_model.hub import HUB_OPTIONS, local_folder
from sfvgen_planner.world_model.kernels import use_fast_kernels
from sfvgen_planner.world_model.objective import is_flow
from sfvgen_planner.world_model.pipeline_output import VideoWorldModelOutput
from sfvgen_planner.world_model.pixels import (
    as_tensor,
    check_frames,
    check_latents,
    decode_latents,
    encode_frames,
)
from sfvgen_planner.world_model.pretrained import is_empty, load_whole
from sfvgen_planner.world_model.sampling import (
    denoise_chunk,
    nothing_to_hear,
    nothing_to_show,
)
from sfvgen_planner.world_model.sampling_options import SamplingOptions

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = "14MB"
_PUSH_OPTIONS = ("repo_id", "private", "token", "commit_message", "create_pr")


class VideoWorldModel(DiffusionPipeline):
    """Masked conditional video diffusion with language and continuous actions.

    The five components are those of diffusers' ModelScope text-to-video pipeline. The denoiser
    sees clean context frames and noised future frames on one time axis, next to the planes of
    `sfvgen_planner.world_model.conditioning`. Past, instruction and actions may each be absent.

    Any number of videos can be imagined in one call: a GPU is asked how much memory it has free,
    and a larger batch is done in turn. `compile` makes it fast.

    Attributes:
        max_batch_size: Videos that are denoised or decoded at once; None for as many as fit. The
            result does not depend on it.
        num_memories: Fast weights in the denoiser, each for an equal share of the batch, in order;
            set by the memory.
        memory_layers: The denoiser's layers that have fast weights; set by the memory.
        hear: Reads the instructions of a chunk for these layers (`denoise_chunk`); likewise.
        show_memory: Puts what the memory holds in place, or nothing while it is hidden; likewise.
        memory_hidden: How many `without_memory` last.

    Args:
        vae: Autoencoder of single frames, any image one of diffusers.
        text_encoder: CLIP text encoder; its hidden states reach the denoiser by cross-attention.
        tokenizer: Tokenizer of `text_encoder`.
        unet: Denoiser, the paper's 3D UNet or a video transformer; its input has the latent
            channels and the condition planes. One that takes latents only, as ModelScope's, gets
            input channels with zero weights for the planes.
        scheduler: Noise schedule and sampler; `FlowMatchEulerDiscreteScheduler`, or one of the DDPM
            family that predicts the noise or v.
        num_past_frames: f_p, the context frames of a usual chunk.
        num_future_frames: f_g, the frames generated in one chunk; after a single past frame,
            f_p - 1 more, because every chunk fills a window of f_p + f_g frames.
        image_size: Height and width of a frame in pixels; by default what `unet` was made for.
        action_low: Lower bound of each action number, in the environment's units; None for a
            model without actions.
        action_high: Upper bound of each action number.
        frame_skip: Environment steps per video frame.
        env_id: Gymnasium id of the environment the model was trained on, for the record.
        data_steps: Steps of the data that the model was trained on, one per video frame, for the
            record; None where nobody knows. Data that was trained on again counts again.
        text_frozen: Leave the weights of `text_encoder` as they are, in all further training too.

    Raises:
        SfvgenError: The components don't fit each other, or a size or bound makes no sense.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"

    vae: Any
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: Denoiser
    scheduler: Any

    def __init__(
        self,
        vae: ModelMixin,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: Denoiser,
        scheduler: SchedulerMixin,
        num_past_frames: int = 4,
        num_future_frames: int = 8,
        image_size: int | None = None,
        action_low: Sequence[float] | np.ndarray | None = None,
        action_high: Sequence[float] | np.ndarray | None = None,
        frame_skip: int = 1,
        env_id: str = "",
        data_steps: int | None = None,
        text_frozen: bool = False,
    ) -> None:
        super().__init__()
        require_count("num_past_frames", num_past_frames)
        require_count("num_future_frames", num_future_frames)
        is_flow(scheduler)
        low, high = action_bounds(action_low, action_high)
        latent_channels, factor = latent_geometry(vae)
        fit_unet(unet, latent_channels, text_encoder.config.hidden_size, len(low))
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.register_to_config(
            num_past_frames=num_past_frames,
            num_future_frames=num_future_frames,
            image_size=fit_image_size(unet, factor, image_size),
            action_low=low,
            action_high=high,
            frame_skip=frame_skip,
            env_id=env_id,
            data_steps=data_steps,
            text_frozen=text_frozen,
        )
        if text_frozen:
            text_encoder.requires_grad_(False)
        for module in (vae, text_encoder, unet):
            module.eval()
        self.set_progress_bar_config(disable=True)
        self.max_batch_size: int | None = None
        self.num_memories = 1
        self.memory_layers: tuple[Any, ...] = ()
        self.hear: Callable[[Tensor], AbstractContextManager[None]] = nothing_to_hear
        self.show_memory: Callable[[], None] = nothing_to_show
        self.memory_hidden = 0
        self._full_texts: set[str] = set()
        self._batches = BatchRunner()
        self._fast: FastSampling | None = None

    def compile(self, **options: Any) -> None:
        """Sample through compiled code from now on, and on a GPU through CUDA graphs.

        Call it once the model is on its device and in its precision. Each new shape, that is
        number of videos (rounded up to a power of two), of past and of future frames, takes a
        minute or so the first time. Memories may be attached, written and detached as ever; what
        needs gradients is not compiled, but a memory's writes get CUDA graphs too.

        Args:
            **options: Of `torch.compile`, such as `mode="max-autotune-no-cudagraphs"`. With
                `disable=True` there are CUDA graphs alone: a new shape takes seconds then, and a
                large denoiser, whose kernels are long, loses little.

        Example:
            >>> model = load_world_model().to("cuda", torch.bfloat16)
            >>> model.compile()
        """
        _, height, width = self.latent_size
        use_fast_kernels(self.unet, self.vae, height * width)
        self._fast = FastSampling(self.denoise, self._pixels, self.text_encoder, options)

    @contextmanager
    def without_memory(self) -> Iterator[None]:
        """Imagine from the slow weights alone for as long as the context lasts.

        What a memory learns meanwhile is seen afterwards.
        """
        self.memory_hidden += 1
        try:
            self.show_memory()
            yield
        finally:
            self.memory_hidden -= 1
            self.show_memory()

    @property
    def graph_pool(self) -> GraphPool | None:
        """The memory of a compiled model's CUDA graphs, None where there are none.

        What else is captured of the model may share it, because all of it runs in turn.
        """
        device = self.unet.device
        if self._fast is None or device.type != "cuda":
            return None
        with torch.cuda.device(device):
            return self._fast.pool

    # ---------------------------------------------------------------- checkpoints

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> Self:
        """Load a checkpoint in diffusers' layout (safetensors only), also from the Hub.

        It is a saved world model or a text-to-video model such as the paper's base model,
        `text-to-video-ms-1.7b`. The latter knows neither actions nor windows: give `action_low`,
        `action_high`, `num_past_frames` and `num_future_frames`.

        Args:
            pretrained_model_name_or_path: The folder that holds `model_index.json`, or a Hub id
                `user/name` or `user/name@revision`, see `local_folder`.
            **kwargs: Arguments of this class to use instead of the folder's, components included
                (`vae=AutoencoderKL.from_pretrained(...)`), and those of diffusers, such as
                `variant="fp16"`, `revision` or `token`. Weights are float32 unless `dtype` says
                otherwise.

        Raises:
            SfvgenError: There is no such folder, and the Hub has no such model or can't be reached;
                a file is missing, cut short, or belongs to another model; weights are
                pickled; or the components don't fit each other.
        """
        options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        folder = local_folder(pretrained_model_name_or_path, **options)
        given = {name for name in COMPONENTS if name in kwargs}
        for name in given:
            require(kwargs[name] is not None, f"a world model needs its {name}; leave it out")
        variant = kwargs.get("variant")
        check_folder(folder, given, variant)
        # Diffusers' older name.
        dtype = kwargs.pop("torch_dtype", torch.float32)
        dtype = kwargs.setdefault("dtype", dtype)
        require(
            isinstance(dtype, torch.dtype | dict),
            f"dtype must be one of torch's, such as torch.bfloat16, got {dtype!r}",
        )
        dtypes = dtype if isinstance(dtype, dict) else {"default": dtype}
        with loading_errors(folder), quiet_libraries():
            if "text_encoder" not in given:
                kwargs["text_encoder"] = load_whole(
                    CLIPTextModel,
                    folder / "text_encoder",
                    variant=variant,
                    dtype=dtypes.get("text_encoder", dtypes.get("default", torch.float32)),
                )
            model: Self = super().from_pretrained(str(folder), use_safetensors=True, **kwargs)
        require(
            not is_empty(model.tokenizer),
            f"{folder / 'tokenizer'} holds no tokenizer; save or copy the checkpoint again",
        )
        for name in COMPONENTS:
            component = getattr(model, name)
            if isinstance(component, nn.Module) and any(p.is_meta for p in component.parameters()):
                raise SfvgenError(
                    f"{folder / name} lacks weights of the model; save or copy the checkpoint again"
                )
        return model

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write the checkpoint folder: JSON, safetensors in shards, and a manifest of checksums.

        Args:
            save_directory: The folder; made where it is missing.
            push_to_hub: Upload the same to the Hub too, to the repository `repo_id`, by default one
                of the folder's name.
            **kwargs: Of diffusers, such as `max_shard_size`, and for the Hub `repo_id`, `private`,
                `token`, `commit_message` and `create_pr`.

        Raises:
            SfvgenError: Pickled weights are asked for (`safe_serialization=False`), a memory is in
                the model, or the folder can't be written.
        """
        require(
            not self.memory_layers,
            "a memory is in this model, so its weights have other names; keep what it has learnt "
            "with its own save_pretrained, then detach() it before saving the model",
        )
        if not kwargs.pop("safe_serialization", True):
            raise SfvgenError("weights are saved as safetensors only: leave safe_serialization out")
        hub = {name: kwargs.pop(name) for name in _PUSH_OPTIONS if name in kwargs}
        kwargs.setdefault("max_shard_size", MAX_SHARD_SIZE)
        folder = prepare_folder(Path(save_directory))
        with writing_errors(folder, kept=False), quiet_libraries():
            super().save_pretrained(folder, safe_serialization=True, **kwargs)
            finish_folder(folder)
        if push_to_hub:
            # Diffusers itself would upload before there is a manifest.
            hub.setdefault("repo_id", folder.name)
            self.push_to_hub(variant=kwargs.get("variant"), **hub)

    # ---------------------------------------------------------------- pixels and latents

    @property
    def action_size(self) -> int:
        """Numbers in one action, A; 0 for a model without actions."""
        return len(self.config.action_low)

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Channels, height and width of one frame's latents."""
        channels, factor = latent_geometry(self.vae)
        side = self.config.image_size // factor
        return channels, side, side

    @torch.no_grad()
    def encode(self, frames: np.ndarray | Tensor) -> Tensor:
        """Frames uint8 `(batch, frames, H, W, 3)` to latents `(batch, channels, frames, h, w)`.

        Latents are float32, shifted and scaled to about zero mean and unit variance.

        Raises:
            SfvgenError: The frames are not uint8 or not of the model's size.
        """
        pixels = check_frames(frames, self.config.image_size)
        batch, num_frames = pixels.shape[:2]
        latents = self._batches.run(
            "encode",
            self.vae,
            partial(encode_frames, self.vae),
            pixels.to(self.device).flatten(0, 1),
            max_batch_size=None,
        )
        return latents.unflatten(0, (batch, num_frames)).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents `(batch, channels, frames, h, w)` to frames uint8 `(batch, frames, H, W, 3)`.

        Raises:
            SfvgenError: The latents have another shape.
        """
        check_latents(latents, self.latent_size)
        function = self._pixels if self._fast is None else self._fast.decode
        pixels = self._batches.run(
            "decode",
            self.vae,
            function,
            latents.to(self.device),
            max_batch_size=self.max_batch_size,
            compiled=self._fast,
        )
        frames: np.ndarray = pixels.cpu().numpy()
        return frames

    def _pixels(self, latents: Tensor) -> Tensor:
        """What `decode` gives, on the device."""
        return decode_latents(self.vae, latents)

    def normalise_actions(self, actions: np.ndarray | Tensor) -> Tensor:
        """Actions in the environment's units to [-1, 1], float32 on the model's device.

        Raises:
            SfvgenError: An action has the wrong size, is not finite or leaves the bounds.
        """
        values = actions if isinstance(actions, Tensor) else as_tensor(actions)
        low, high = self.config.action_low, self.config.action_high
        return normalise_actions(values, low, high).to(self.device)

    def tokenize(self, instructions: list[str]) -> Tensor:
        """Token ids `(batch, max_length)` of the instructions, on the CPU.

        What does not fit into `max_length` tokens is cut off; a warning tells so, once per text.
        """
        limit = self.text_encoder.config.max_position_embeddings
        encoded = self.tokenizer(
            instructions,
            padding="max_length",
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        )
        full = encoded.attention_mask.all(dim=1).tolist()
        # A text with padding was not cut.
        for text, is_full in zip(instructions, full, strict=True):
            if is_full and text not in self._full_texts:
                self._full_texts.add(text)
                self._tell_if_cut(text, limit)
        token_ids: Tensor = encoded.input_ids
        return token_ids

    def _tell_if_cut(self, text: str, limit: int) -> None:
        length = len(self.tokenizer(text, verbose=False).input_ids)
        if length > limit:
            logger.warning(
                "the instruction %r has %d tokens, but the model reads no more than %d: the rest "
                "is cut off",
                text,
                length,
                limit,
            )

    @torch.no_grad()
    def encode_instructions(self, instructions: list[str]) -> Tensor:
        """Hidden states `(batch, tokens, dim)` of the instructions; "" stands for none."""
        token_ids = self.tokenize(instructions).to(self.device)
        states: Tensor = self.text_encoder(token_ids).last_hidden_state
        return states

    # ---------------------------------------------------------------- denoising and sampling

    def denoise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        num_past: int,
        text_states: Tensor,
        actions: Tensor | None = None,
        actions_given: Tensor | None = None,
        context_given: Tensor | None = None,
    ) -> Tensor:
        """One call of the denoiser on a whole window; gradients flow.

        Args:
            latents: `(batch, channels, frames, h, w)`, clean context first, then noised frames.
            timesteps: `(batch,)` in the scheduler's units.
            num_past: Context frames at the start of the window.
            text_states: `(batch, tokens, dim)`.
            actions: `(batch, frames - num_past, A)` in [-1, 1], or None for no action.
            actions_given: `(batch,)`, 0 where the actions are dropped; all 1 by default.
            context_given: `(batch,)`, 0 where the whole window is noised; all 1 by default.

        Returns:
            The prediction for every frame of the window, same shape as `latents`.
        """
        batch, _, num_frames, height, width = latents.shape
        ones = latents.new_ones(batch)
        if actions is None:
            actions = latents.new_zeros(batch, num_frames - num_past, self.action_size)
            actions_given = latents.new_zeros(batch)
        planes = condition_planes(
            num_past,
            actions.to(latents.dtype),
            ones if actions_given is None else actions_given.to(latents.dtype),
            ones if context_given is None else context_given.to(latents.dtype),
            height,
            width,
        )
        # Latents and sums of actions keep their precision until here.
        # diffusers' `unet.dtype` walks through all modules, which takes longer than many kernels.
        dtype = next(self.unet.parameters()).dtype
        window = torch.cat([latents, planes], dim=1).to(dtype)
        prediction: Tensor = self.unet(
            window, timesteps, encoder_hidden_states=text_states.to(dtype)
        ).sample
        return prediction

    @torch.no_grad()
    def __call__(
        self,
        past: np.ndarray | Tensor,
        instruction: str | list[str | None] | None = None,
        actions: np.ndarray | Tensor | None = None,
        num_frames: int | None = None,
        num_inference_steps: int = 4,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "np",
        common_noise: bool = False,
        samples_per_generator: int = 1,
    ) -> VideoWorldModelOutput:
        """Imagine the frames after `past`.

        More frames than one chunk are rolled out chunk by chunk, each chunk's output being the
        next one's past (paper: X_{i+1} = Y_i).

        Args:
            past: uint8 `(batch, f, H, W, 3)` or latents `(batch, channels, f, h, w)`, f >= 1; the
                last `num_past_frames` count, or the last one when there are fewer.
            instruction: What the robot is told; None for nothing. One for all or one each.
            actions: `(batch, num_frames, A)` in the environment's units; entry `k` leads into the
                `k`-th imagined frame. None for no actions. Where a tensor requires gradients, they
                flow back from the latents; no compiled code is used then.
            num_frames: Frames to imagine; the actions' number, or one chunk, by default.
            num_inference_steps: Denoiser calls per chunk.
            guidance_scale: Above 1, the video follows the instruction more closely than the
                training data did (classifier-free guidance), at twice the denoiser calls. No
                effect without an instruction.
            generator: Source of the noise that sampling starts from; the global one by default.
                With a list, one for each `samples_per_generator` samples, their noise does not
                depend on what else is in the batch. What a stochastic scheduler, such as DDPM's,
                adds on the way comes from the global one.
            output_type: "np" decodes the frames, "latent" does not.
            common_noise: Give every sample of a generator the same noise, so that candidates
                differ by their actions alone.
            samples_per_generator: Samples in a row that share one of a list of generators, and are
                given what it would give them alone.

        Raises:
            SfvgenError: An argument has the wrong shape, range or type.
        """
        if output_type not in ("np", "latent"):
            raise SfvgenError(f'output_type must be "np" or "latent", got {output_type!r}')
        options = SamplingOptions(
            num_inference_steps, guidance_scale, generator, common_noise, samples_per_generator
        )
        is_latent = isinstance(past, Tensor) and past.is_floating_point()
        context = past if is_latent else self.encode(past)
        assert isinstance(context, Tensor)
        context = check_latents(context, self.latent_size).to(self.device, torch.float32)
        batch = context.shape[0]
        options.check_generators(batch)
        normalised = None
        differentiable = isinstance(actions, Tensor) and actions.requires_grad
        if actions is not None:
            with torch.set_grad_enabled(differentiable):
                normalised = self.normalise_actions(actions)
            num_frames = planned_frames(normalised, batch, num_frames)
        if num_frames is None:
            num_frames = self._chunk_frames(self._usual_context(context))
        require_count("num_frames", num_frames)
        texts = instruction if isinstance(instruction, list) else [instruction] * batch
        if len(texts) != batch:
            raise SfvgenError(f"{batch} pasts need {batch} instructions, got {len(texts)}")
        for text in texts:
            require(
                text is None or isinstance(text, str),
                f"an instruction must be a text or None, got {text!r}",
            )
        unique = sorted({"", *(text or "" for text in texts)})
        encode = self.encode_instructions
        states = encode(unique) if self._fast is None else self._fast.encode_texts(unique, encode)
        states = states.to(self.unet.dtype)
        text_states = states[[unique.index(text or "") for text in texts]]
        no_text_states = None
        if guidance_scale > 1 and len(unique) > 1:
            no_text_states = states[:1].expand(batch, -1, -1)

        chunks = []
        start = 0
        with torch.set_grad_enabled(differentiable):
            while start < num_frames:
                recent = self._usual_context(context)
                length = min(self._chunk_frames(recent), num_frames - start)
                end = start + length
                chunk_actions = None if normalised is None else normalised[:, start:end]
                chunk = self._sample_chunk(
                    recent, text_states, no_text_states, chunk_actions, length, options
                )
                chunks.append(chunk)
                start = end
                context = torch.cat([context, chunk], dim=2)
            latents = torch.cat(chunks, dim=2)
        frames = self.decode(latents) if output_type == "np" else None
        return VideoWorldModelOutput(frames=frames, latents=latents)

    @property
    def _compiled(self) -> FastSampling | None:
        """The compiled code, but not where gradients are needed."""
        return None if torch.is_grad_enabled() else self._fast

    def _usual_context(self, context: Tensor) -> Tensor:
        """The context lengths that training saw: f_p frames, or a single one."""
        num_past = self.config.num_past_frames
        return context[:, :, -num_past:] if context.shape[2] >= num_past else context[:, :, -1:]

    def _chunk_frames(self, context: Tensor) -> int:
        """Frames that one chunk adds: the window of training is filled, whatever its past."""
        window = self.config.num_past_frames + self.config.num_future_frames
        return int(window - context.shape[2])

    def _sample_chunk(
        self,
        context: Tensor,
        text_states: Tensor,
        no_text_states: Tensor | None,
        actions: Tensor | None,
        length: int,
        options: SamplingOptions,
    ) -> Tensor:
        """Denoise `length` frames after a clean `context` (masked conditional diffusion)."""
        steps, guidance_scale = options.num_inference_steps, options.guidance_scale
        return self._batches.run(
            ("denoise", steps, guidance_scale, self.scheduler),
            self.unet,
            partial(
                denoise_chunk,
                self.denoise if self._compiled is None else self._compiled.denoise,
                self.hear,
                self.scheduler,
                steps,
                guidance_scale,
                self.progress_bar,
            ),
            context,
            options.draw_noise(context, length),
            text_states,
            no_text_states,
            actions,
            max_batch_size=self.max_batch_size,
            num_memories=self.num_memories,
            compiled=self._compiled,
        )
