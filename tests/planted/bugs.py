"""The bugs: what is replaced in which file, and the tests that must then fail."""

import dataclasses

RECURRENCE = "tests/ops/test_recurrence.py"
CONFORMANCE = "tests/conformance/test_mixers.py"
LOSSES = "tests/distill/test_losses.py"
VOCABULARY = "tests/distill/test_vocabulary.py"
TRAINABLE = "tests/training/test_trainable.py"
WRITTEN = "tests/distill/test_on_policy.py::test_what_is_written_is_what_generate_writes"
PACKED = "test_packed_documents_are_separate_documents"
CHUNKS = f"{RECURRENCE}::test_chunkwise_is_the_oracle"
GUARD = "tests/bench/test_guard.py::test_nothing_is_quadratic_or_fatter_than_it_was"


@dataclasses.dataclass(frozen=True)
class Bug:
    """One bug.

    Attributes:
      name: what goes wrong, in words.
      file: below ``effarch/``. old, new: what stands there, exactly once, and what takes its place.
      tests: node ids, some of which must fail with the bug and all of which pass without it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


BUGS = (
    # Decay and chunks
    Bug(
        "decays as differences of prefix sums, masked after the exponential",
        "ops/recurrence/decay.py",
        "    size = log_decay.shape[-1]\n    piece = ",
        "    g = prefix_sums(log_decay)\n    return jnp.exp(g[..., :, None] - g[..., None, :])\n    piece = ",
        (f"{RECURRENCE}::test_decay_sweep[scalar]",),
    ),
    Bug(
        "decays summed in bfloat16",
        "ops/recurrence/inputs.py",
        "log_decay=log_decay.astype(inputs.state_dtype)",
        "log_decay=log_decay.astype(jnp.bfloat16).astype(inputs.state_dtype)",
        (f"{CHUNKS}[scalar-after]",),
    ),
    Bug(
        "states held in the dtype of the inputs",
        "ops/precision.py",
        "    dtype = jnp.dtype(jnp.float32)\n",
        "    dtype = jnp.dtype(arrays[0].dtype)\n",
        (f"{RECURRENCE}::test_bfloat16_keeps_a_float32_state",),
    ),
    Bug(
        "the chunk's tail decays the state once too often",
        "ops/recurrence/decay.py",
        "log_decay * (clock[..., -1:] - clock).astype(dtype)",
        "log_decay * (clock[..., -1:] - clock + 1).astype(dtype)",
        (f"{CHUNKS}[constant-after]",),
    ),
    Bug(
        "the padding of the last chunk decays the state",
        "ops/recurrence/chunkwise.py",
        "    if constant and inputs.run is None and count * size != time:",
        "    if constant and inputs.run is None and count * size < time:",
        (f"{RECURRENCE}::test_short_and_exact_lengths_without_segments[constant-5-chunkwise]",),
    ),
    Bug(
        "the initial state is ignored in the backward pass",
        "ops/recurrence/chunkwise.py",
        "lead(state), xs)",
        "lead(jax.lax.stop_gradient(state)), xs)",
        (f"{CHUNKS}[scalar-after]",),
    ),
    Bug(
        "the rank-one term reads the state after this token's decay",
        "ops/recurrence/chunkwise.py",
        'decay.read(x["r"], state, "before")',
        'decay.read(x["r"], state)',
        (f"{CHUNKS}[rank_one-after]",),
    ),
    Bug(
        "the delta rule corrects before the decay",
        "ops/recurrence/recurrent.py",
        "v - _read(after, k))",
        "v - _read(state, k))",
        (f"{RECURRENCE}::test_other_forms_are_the_oracle[delta_scalar-recurrent]",),
    ),
    Bug(
        "the triangular inverse has the wrong sign",
        "ops/recurrence/chunkwise.py",
        "unit_lower_solve(-rp,",
        "unit_lower_solve(rp,",
        (f"{CHUNKS}[rank_one-after]",),
    ),
    Bug(
        "the second half of a run of tokens counts the decay of the first twice",
        "ops/recurrence/decay.py",
        "start[:, 1] * first]",
        "start[:, 1] * first * first]",
        (f"{CHUNKS}[diagonal-after]",),
    ),
    Bug(
        "reading before writing sees this token",
        "ops/recurrence/recurrent.py",
        "_read(state if before else after, q)",
        "_read(after, q)",
        (f"{RECURRENCE}::test_other_forms_are_the_oracle", f"{CONFORMANCE}::test_token_by_token_is_the_whole[rwkv6]"),
    ),
    Bug(
        "query heads are tiled over key heads, not repeated",
        "ops/recurrence/inputs.py",
        "x = jnp.repeat(x, count // heads, axis=axis)",
        "x = jnp.tile(x, [count // heads if i == axis % x.ndim else 1 for i in range(x.ndim)])",
        (f"{RECURRENCE}::test_queries_and_keys_of_different_groups[chunkwise]",),
    ),
    # Documents, padding, carried state
    Bug(
        "the convolution reads over the start of a document",
        "ops/conv.py",
        "        same = run[:, window] == inner.run\n",
        "        same = inner.run > 0\n",
        ("tests/ops/test_conv.py::test_gradients_do_not_cross_documents",),
    ),
    Bug(
        "the convolution's carried inputs survive the end of their document",
        "ops/conv.py",
        "kept = jnp.take_along_axis(run, last, axis=1) == segments.last_run[:, None]",
        "kept = jnp.take_along_axis(run, last, axis=1) > 0",
        ("tests/ops/test_conv.py::test_pieces_with_carried_state_are_the_whole",),
    ),
    Bug(
        "the state survives the end of its document inside a chunk",
        "ops/recurrence/decay.py",
        "keep=for_heads((last == carried)",
        "keep=for_heads((last >= carried)",
        (f"{CHUNKS}[scalar-after]",),
    ),
    Bug(
        "documents in one chunk see each other",
        "ops/recurrence/decay.py",
        "pair = (run[:, :, None] == run[:, None, :]) & real[:, :, None]",
        "pair = (run[:, :, None] >= run[:, None, :]) & real[:, :, None]",
        (f"{RECURRENCE}::test_documents_do_not_see_each_other[scalar]",),
    ),
    Bug(
        "padding advances a constant decay",
        "ops/recurrence/decay.py",
        "clock = jnp.cumsum(real.astype(jnp.int32), axis=-1, dtype=jnp.int32)",
        "clock = jnp.cumsum(jnp.ones_like(real, jnp.int32), axis=-1, dtype=jnp.int32)",
        (f"{CHUNKS}[constant-after]",),
    ),
    Bug(
        "decoding does not reset at a new document",
        "ops/recurrence/recurrent.py",
        "(real[:, 0, 0, 0] & (run != carried))[:, None, None, None, None]",
        "(real[:, 0, 0, 0] & (run < 0))[:, None, None, None, None]",
        (f"{CONFORMANCE}::test_token_by_token_is_the_whole[gated_deltanet]",),
    ),
    Bug(
        "padding writes to the KV cache",
        "ops/attention/cache.py",
        "slot = destination(segments, cache.k.shape[1])",
        "slot = segments.position",
        ("tests/ops/test_kv_cache.py::test_chunks_equal_the_whole_row",),
    ),
    Bug(
        "the elementwise scan runs over the start of a document",
        "ops/scan.py",
        "((run > 0) & (run != carried)).reshape(wide)",
        "((run > 0) & (run < carried)).reshape(wide)",
        ("tests/ops/test_scan.py::test_scan_is_the_loop",),
    ),
    Bug(
        "padding moves the elementwise scan",
        "ops/scan.py",
        "        x = jnp.where(real, x.astype(like.dtype), zero)\n",
        "        x = x.astype(like.dtype)\n",
        ("tests/ops/test_scan.py::test_scan_is_the_loop",),
    ),
    Bug(
        "positions go on over documents",
        "ops/segments.py",
        "    length = jnp.where(base < 0, count + before.length[:, None], count - base)",
        "    length = count + before.length[:, None]",
        (
            "tests/ops/test_segments.py::test_runs_and_positions",
            f"{CONFORMANCE}::test_packed_documents_are_separate_documents[retnet]",
        ),
    ),
    Bug(
        "a row that is all padding forgets its document",
        "mixers/context.py",
        ".max(axis=1), before.last_segment),",
        ".max(axis=1), 0),",
        (f"{CONFORMANCE}::test_a_row_of_padding_changes_no_state[retnet]",),
    ),
    # Attention
    Bug(
        "rows that see nothing are NaN",
        "ops/attention/reference.py",
        "    o = read / jnp.where(total > 0, total, 1)[..., None]\n",
        "    o = read / total[..., None]\n",
        ("tests/ops/test_attention.py::test_padding_is_the_identity_and_keeps_its_nan",),
    ),
    Bug(
        "the window is one token too long",
        "ops/attention/reference.py",
        "seen &= at_k > at_q - self.window",
        "seen &= at_k >= at_q - self.window",
        ("tests/ops/test_window.py::test_forms_equal_a_loop_in_float64",),
    ),
    Bug(
        "the first tile of a block of keys reads the block before",
        "ops/attention/block_sparse.py",
        "_below(ends, tile + 1)",
        "_below(ends, tile)",
        ("tests/ops/test_block_sparse.py::test_tiles_equal_the_mask_in_value_and_gradient",),
    ),
    Bug(
        "the query's own block is among those it chooses",
        "ops/attention/choice.py",
        "jnp.where((distance > 0)[:, None], found, -jnp.inf)",
        "jnp.where((distance >= 0)[:, None], found, -jnp.inf)",
        (f"{CONFORMANCE}::test_forms_agree_with_the_float64_oracle[moba-chunkwise]",),
    ),
    Bug(
        "the pseudo-inverse of a head depends on the other heads",
        "ops/attention/nystrom.py",
        "(columns.max(axis=-1) * rows.max(axis=-1))[..., None, None]",
        "(columns.max() * rows.max())",
        (
            "tests/mixers/test_low_rank.py::test_the_iteration_converges_to_the_inverse_and_each_matrix_has_its_own_scale",
        ),
    ),
    # Normalised sums
    Bug(
        "the decayed average runs over the start of a document",
        "ops/decayed_average.py",
        "first = (self.run > 0) & (self.run != self.carried)",
        "first = (self.run > 0) & (self.run < self.carried)",
        ("tests/ops/test_decayed_average.py::test_it_is_the_quadratic_average[0-64]",),
    ),
    Bug(
        "a span of tokens forgets that a document began in it",
        "ops/decayed_average.py",
        "left.log_decay + right.log_decay, left.drop | right.drop)",
        "left.log_decay + right.log_decay, right.drop)",
        ("tests/ops/test_decayed_average.py::test_it_is_the_quadratic_average[0-64]",),
    ),
    Bug(
        "the running maximum survives the end of its document",
        "ops/stabiliser.py",
        "a, b = jnp.where(new, -jnp.inf, g), jnp.where(new, jnp.maximum(g + start, i), i)",
        "a, b = g, i",
        ("tests/ops/test_stabiliser.py::test_maximum_is_the_loop[0-0.0]",),
    ),
    Bug(
        "keys are weighed without the maximum that they were divided by",
        "ops/normalised.py",
        "        weight = jnp.exp(gates.log_input)[..., None]\n",
        "        weight = jnp.ones_like(gates.log_input)[..., None]\n",
        ("tests/ops/test_normalised.py::test_outputs_are_the_quadratic_sum[3.0-chunkwise]",),
    ),
    Bug(
        "cosFormer's weights turn negative beyond a quarter turn",
        "ops/features.py",
        "angle = jnp.minimum(positions, length).astype(dtype)",
        "angle = positions.astype(dtype)",
        ("tests/ops/test_features.py::test_cosine_weights_are_relative_and_never_negative",),
    ),
    Bug(
        "redrawn features are those of the first layer in every layer",
        "nn/feature_map.py",
        "draw(jax.random.split(key, tuple(layers)))",
        "draw(jax.numpy.broadcast_to(key, tuple(layers)))",
        ("tests/nn/test_feature_map.py::test_redrawing_is_pure_and_touches_random_features_only",),
    ),
    # Sequences split over devices
    Bug(
        "a device starts from its own end",
        "ops/context.py",
        "partial(jnp.where, index < mine)",
        "partial(jnp.where, index <= mine)",
        ("tests/ops/test_context_parallel.py::test_split_over_devices_is_whole[scalar]",),
    ),
    Bug(
        "affine maps are composed in the wrong order",
        "ops/recurrence/context.py",
        "    (m1, u1), (m2, u2) = earlier, later\n",
        "    (m2, u2), (m1, u1) = earlier, later\n",
        ("tests/ops/test_context_parallel.py::test_composition_of_affine_maps",),
    ),
    Bug(
        "what a device has of one document is joined with another's",
        "ops/tail.py",
        "    same, nothing = earlier.run == later.run, later.run == 0\n",
        "    same, nothing = earlier.run > 0, later.run == 0\n",
        ("tests/parallel/test_context.py::test_convolutions[4-64]",),
    ),
    Bug(
        "a shard of the ring replaces what was read before it",
        "ops/attention/ring.py",
        "        top = jnp.maximum(logsumexp, of_part)\n",
        "        logsumexp, top = logsumexp + EMPTY, of_part\n",
        ("tests/parallel/test_context.py::test_rings[True-61]",),
    ),
    Bug(
        "gradients of keys stay on the device that the keys have left",
        "ops/attention/ring.py",
        "return more[0], turns.send((keys, more[1]))",
        "return more[0], (turns.send(keys), more[1])",
        ("tests/parallel/test_context.py::test_rings[True-61]",),
    ),
    Bug(
        "the sums of forget gates begin anew in every shard",
        "ops/attention/forgetting.py",
        "sums = jax.tree.map(lambda y: y[:, None], before).before(_scan(tokens))",
        "sums = _scan(tokens)",
        ("tests/parallel/test_context.py::test_rings_that_forget",),
    ),
    Bug(
        "every device reads the line as the first one sees it",
        "ops/attention/gathered.py",
        "line.of(jax.lax.axis_index(axis) * q.shape[1], ",
        "line.of(0, ",
        (f"{CONFORMANCE}::test_sharded_over_eight_devices_is_single[bigbird]",),
    ),
    Bug(
        "the ring that a shard goes on with is not turned to its positions",
        "mixers/longformer.py",
        "slot = (jnp.arange(reach, dtype=jnp.int32)[None] - left.length[:, None]) % reach",
        "slot = (jnp.arange(reach, dtype=jnp.int32)[None] + 0 * left.length[:, None]) % reach",
        (f"{CONFORMANCE}::test_sharded_over_eight_devices_is_single[longformer]",),
    ),
    # Distillation and training
    Bug(
        "losses are computed in bfloat16",
        "distill/divergences.py",
        "    logits = logits.astype(accumulator(logits))\n    largest",
        "    logits = logits.astype(jnp.bfloat16)\n    largest",
        (
            "tests/distill/test_losses.py::test_identical_models_are_at_zero",
            "tests/distill/test_losses.py::test_loss_and_gradient_match_the_textbook",
        ),
    ),
    Bug(
        "cached log-probabilities are not made to sum to the mass of the k",
        "distill/quantise.py",
        "    return (mass - total)[..., None] - below\n",
        "    return mass[..., None] - below\n",
        ("tests/distill/test_quantise.py::test_the_bounds_hold",),
    ),
    Bug(
        "a cache is read in the order of its rows, not in that asked for",
        "distill/cache.py",
        "places[here] - number",
        "np.sort(places[here]) - number",
        ("tests/distill/test_cache.py::test_it_holds_what_the_teacher_says",),
    ),
    Bug(
        "progress of a cache is recorded before its rows are there",
        "distill/cache_writer.py",
        '"rows": at}',
        '"rows": at + 1}',
        ("tests/distill/test_cache.py::test_kill_9_loses_nothing_that_was_recorded",),
    ),
    Bug(
        "a cache of another teacher is taken for this one's",
        "distill/cache.py",
        '        digest.update(array.view(np.uint8).data if array.size else b"")\n',
        "",
        ("tests/distill/test_cache.py::test_another_teacher_or_temperature_is_another_cache",),
    ),
    Bug(
        "every device holds the whole teacher",
        "distill/frozen.py",
        "jax.device_put(state, variable_shardings(state, rules))",
        "jax.device_put(state, jax.sharding.NamedSharding(rules.mesh, jax.sharding.PartitionSpec()))",
        ("tests/distill/test_frozen.py::test_no_device_holds_the_whole_teacher",),
    ),
    Bug(
        "the layers that bring least back are chosen",
        "distill/select.py",
        "np.argsort(alone)[:keep]",
        "np.argsort(alone)[::-1][:keep]",
        ("tests/distill/test_select.py::test_the_broken_layer_is_chosen_first",),
    ),
    Bug(
        "a batch whose every token is masked is 0 / 0",
        "training/step.py",
        "divisor = jnp.where(some, weight, jnp.ones_like(weight))",
        "divisor, some = weight, jnp.ones_like(some)",
        ("tests/training/test_step.py::test_masked_batch_has_no_loss_and_no_nan",),
    ),
    Bug(
        "NaN in padding reaches the loss",
        "distill/losses.py",
        "    return jnp.where(mask[..., None].astype(bool), x, jnp.zeros_like(x))\n",
        "    return x * mask[..., None].astype(x.dtype)\n",
        (f"{LOSSES}::test_masks_and_micro_batches",),
    ),
    Bug(
        "the last slice of the vocabulary counts entries of the one before again",
        "distill/vocabulary.py",
        ">= first[:, None]",
        ">= start[:, None]",
        (f"{VOCABULARY}::test_slices_equal_the_whole[forward_kl]",),
    ),
    Bug(
        "the gradient of a slice forgets the normalisation over all of them",
        "distill/vocabulary.py",
        "own - jnp.exp(log_q).astype(own.dtype) * slope",
        "own",
        (f"{VOCABULARY}::test_slices_equal_the_whole[total_variation]",),
    ),
    Bug(
        "a tail that rounding made up is weighed by the logarithm of the student's",
        "distill/top_k.py",
        "tail = jnp.where(taught < math.log(NOISE), jnp.maximum(tail, taught), tail)",
        "tail = jnp.maximum(tail, -RANGE)",
        ("tests/distill/test_top_k.py::test_identical_models_are_at_zero_and_empty_tails_cost_nothing",),
    ),
    Bug(
        "every micro-batch draws the same noise",
        "training/step.py",
        "jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)",
        "jax.random.wrap_key_data(state.rng)",
        ("tests/training/test_step.py::test_each_step_has_its_own_key",),
    ),
    Bug(
        "the order of the data is that of the last epoch",
        "data/batches.py",
        "np.random.SeedSequence([seed, epoch])",
        "np.random.SeedSequence([seed, 0])",
        ("tests/data/test_batches.py::test_batches_are_slices_of_the_permutation",),
    ),
    Bug(
        "quadratic features rounded to bfloat16, so that weights become negative",
        "mixers/rebased.py",
        "self.norm(x).astype(accumulator(x))",
        "self.norm(x)",
        ("tests/nn/test_feature_map.py::test_every_map_keeps_its_promises[rebased]",),
    ),
    # What a stage trains, and on what
    Bug(
        "adapters are merged without alpha / rank",
        "training/lora.py",
        "kernel.astype(dtype) + scale * product",
        "kernel.astype(dtype) + product",
        (f"{TRAINABLE}::test_lora_is_the_base_with_a_low_rank_product_beside_it",),
    ),
    Bug(
        "what is frozen is trained all the same",
        "training/trainable.py",
        "return is_param(variable) and not named(path, self.frozen)",
        "return is_param(variable)",
        (f"{TRAINABLE}::test_what_is_selected_moves_and_nothing_else_does[all but channels]",),
    ),
    Bug(
        "RWKV's r is no q",
        "training/lora.py",
        """_STANDS_FOR = {"q": ("r", "c"), """,
        """_STANDS_FOR = {"q": ("c",), """,
        (f"{TRAINABLE}::test_lora_finds_what_stands_for_attentions_projections",),
    ),
    Bug(
        "the token that ends a text is not learned",
        "distill/on_policy.py",
        "<= length[:, None]",
        "< length[:, None]",
        (WRITTEN,),
    ),
    Bug(
        "what is written belongs to the first document of the prompt",
        "distill/on_policy.py",
        "jnp.where(counts, document, 0)",
        "jnp.where(counts, segments[:, :1], 0)",
        (WRITTEN,),
    ),
    Bug(
        "samples are the same at every step",
        "distill/on_policy.py",
        "return written(student, text, draws,",
        "return written(student, text, jax.random.key(0),",
        ("tests/distill/test_on_policy.py::test_the_loss_is_that_of_the_written_batch_and_sampling_has_no_gradient",),
    ),
    Bug(
        "a stage begins with rows that a stage before has read",
        "distill/plan.py",
        "rows[length] += stage.steps * size",
        "rows[length] = 0",
        ("tests/distill/test_plan.py::test_places_follow_each_other_in_steps_and_in_rows",),
    ),
    # Layer by layer
    Bug(
        "mixing matrices transposed",
        "ops/mixing.py",
        "jnp.swapaxes(o[0] if isinstance(o, tuple) else o, 1, 2)",
        "jnp.moveaxis(o[0] if isinstance(o, tuple) else o, 1, 3)",
        ("tests/ops/test_mixing.py::test_the_matrix_times_the_values_is_the_output",),
    ),
    Bug(
        "Mamba-2's matrix with the step sizes of the token that reads",
        "mixers/mamba2.py",
        "step = jnp.swapaxes(self.step(x), 1, 2)[:, :, None]",
        "step = jnp.swapaxes(self.step(x), 1, 2)[..., None]",
        ("tests/ops/test_mixing.py::test_of_mamba2_with_its_steps_and_its_skip",),
    ),
    Bug(
        "a layer passes to the student an interval late",
        "distill/layerwise.py",
        "passed = rank <= (rank.max() + 1) * update // steps",
        "passed = rank < (rank.max() + 1) * update // steps",
        ("tests/distill/test_layerwise.py::test_layers_pass_one_by_one[up]",),
    ),
    Bug(
        "sinks counted twice, in the window's softmax and in what is linear",
        "ops/window_linear.py",
        "left = (positions >= window + sinks)",
        "left = (positions >= window)",
        ("tests/ops/test_window_linear.py::test_one_normalised_sum[exp]",),
    ),
    Bug(
        "the log-scale of keys is left out of the sum of their weights",
        "ops/normalised.py",
        "for scale in (q.log_scale, log_scale):",
        "for scale in (q.log_scale,):",
        ("tests/ops/test_window_linear.py::test_one_normalised_sum[exp]",),
    ),
    Bug(
        "the head of a masked language model is taught where nothing is hidden",
        "data/masking.py",
        '"chosen": chosen.astype(jnp.float32),',
        '"chosen": (documents > 0).astype(jnp.float32),',
        (
            "tests/data/test_masking.py::test_shares",
            "tests/train/test_distill_masked.py::test_losses_are_of_hidden_tokens_alone",
        ),
    ),
    Bug(
        "texts packed into a row of an encoder see one another",
        "models/encoder.py",
        "ids, leading = None if mask is None else mask.astype(jnp.int32)",
        "ids, leading = None if mask is None else (mask > 0).astype(jnp.int32)",
        ("tests/train/test_distill_masked.py::test_losses_are_of_hidden_tokens_alone",),
    ),
    # What it costs
    Bug(
        "scores of all pairs of tokens beside a recurrence, times zero",
        "mixers/gated_retention.py",
        "        y = self.qkv.o(self.norm(o) * jax.nn.silu(self.gate(x)))\n",
        '        scores = 0 * jnp.einsum("bthk,bshk->bhts", q, k)\n'
        '        o = o + jnp.einsum("bhts,bshv->bthv", scores, v)\n'
        "        y = self.qkv.o(self.norm(o) * jax.nn.silu(self.gate(x)))\n",
        (f"{GUARD}[gated_retention]",),
    ),
    Bug(
        "chunks twice as long",
        "ops/recurrence/__init__.py",
        "chunk_size = default_chunk(k.shape[-1])",
        "chunk_size = 2 * default_chunk(k.shape[-1])",
        (f"{GUARD}[op/delta]", f"{GUARD}[retnet]"),
    ),
    Bug(
        "a head split over fsdp sent in every chunk of the loss",
        "distill/chunked.py",
        "head.gathered() if isinstance(head, Head) else head",
        "head",
        ("tests/parallel/test_exchanged.py::test_a_head_split_over_fsdp_is_sent_once[16-False]",),
    ),
    Bug(
        "rows of a top-k loss looked up on all devices",
        "distill/top_k.py",
        "    return put(x, places, jnp.broadcast_to(values, places.shape))\n",
        "    return jnp.put_along_axis(x, places, values, axis=-1, inplace=False, mode='drop')\n",
        ("tests/parallel/test_exchanged.py::test_a_head_split_over_fsdp_is_sent_once[None-True]",),
    ),
    Bug(
        "buffers of a collective on its way moved by every fusion beside it",
        "bench/traffic.py",
        '(user.opcode == "tuple" and user is inner.root) or on_its_way(inner, user)',
        "on_its_way(inner, user)",
        ("tests/bench/test_collectives.py::test_what_goes_on_beside_other_work_is_counted_once",),
    ),
)
