#include "model/import/hugging_face_config.h"

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "model/import/config_fields.h"
#include "model/storage/files.h"
#include "model/units.h"

namespace train_qat {

namespace {

// What differs between the architectures.
struct Architecture {
    const char* model_type;
    const char* class_name;
    bool attention_biases;  // on queries, keys and values, always
    bool head_norms;
    bool own_head_dim;  // the field must say it
};
constexpr Architecture architectures[] = {{"llama", "LlamaForCausalLM", false, false, false},
                                          {"qwen2", "Qwen2ForCausalLM", true, false, false},
                                          {"qwen3", "Qwen3ForCausalLM", false, true, true}};

// Fields that do not change what a model computes: where it comes from, its tokens' roles, how it was initialized or
// is to be run, how text is drawn from it (older files), dropout (not used here), and windows that are switched off.
const std::set<std::string_view> harmless = {"_attn_implementation",
                                             "_attn_implementation_autoset",
                                             "_commit_hash",
                                             "_name_or_path",
                                             "attn_implementation",
                                             "transformers_version",
                                             "transformers.js_config",
                                             "unsloth_fixed",
                                             "unsloth_version",
                                             "torch_dtype",
                                             "dtype",
                                             "torchscript",
                                             "use_cache",
                                             "return_dict",
                                             "use_return_dict",
                                             "output_attentions",
                                             "output_hidden_states",
                                             "initializer_range",
                                             "attention_dropout",
                                             "bos_token_id",
                                             "eos_token_id",
                                             "pad_token_id",
                                             "sep_token_id",
                                             "unk_token_id",
                                             "decoder_start_token_id",
                                             "forced_bos_token_id",
                                             "forced_eos_token_id",
                                             "tokenizer_class",
                                             "prefix",
                                             "begin_suppress_tokens",
                                             "suppress_tokens",
                                             "bad_words_ids",
                                             "max_length",
                                             "min_length",
                                             "do_sample",
                                             "early_stopping",
                                             "num_beams",
                                             "num_beam_groups",
                                             "diversity_penalty",
                                             "temperature",
                                             "top_k",
                                             "top_p",
                                             "typical_p",
                                             "repetition_penalty",
                                             "length_penalty",
                                             "no_repeat_ngram_size",
                                             "encoder_no_repeat_ngram_size",
                                             "exponential_decay_length_penalty",
                                             "num_return_sequences",
                                             "output_scores",
                                             "return_dict_in_generate",
                                             "remove_invalid_values",
                                             "id2label",
                                             "label2id",
                                             "problem_type",
                                             "finetuning_task",
                                             "task_specific_params",
                                             "chunk_size_feed_forward",
                                             "cross_attention_hidden_size",
                                             "tie_encoder_decoder",
                                             "tf_legacy_loss",
                                             "use_bfloat16",
                                             "max_sequence_length",
                                             "max_window_layers",
                                             "is_llama_config"};

const Architecture& architecture_of(ConfigFields& fields) {
    const std::string type = fields.text("model_type");
    const auto found = std::find_if(std::begin(architectures), std::end(architectures),
                                    [&](const Architecture& known) { return type == known.model_type; });
    if (found == std::end(architectures)) fields.refuse("model_type", "supported are llama, qwen2 and qwen3");
    fields.require("architectures", nlohmann::json::array({found->class_name}),
                   "of model_type " + type + " only " + found->class_name + " is supported");
    return *found;
}

void refuse_unsupported(ConfigFields& fields, const Architecture& architecture) {
    fields.require("hidden_act", "silu", "only silu is supported");
    fields.require("mlp_bias", false, "biases of the feed-forward block are not supported");
    fields.require("attention_bias", architecture.attention_biases,
                   architecture.attention_biases
                       ? "models of this type have biases of queries, keys and values"
                       : "a bias of the attention's output is not supported");
    fields.require("use_sliding_window", false, "only full attention is supported");
    // Qwen's files name a window that use_sliding_window leaves unused.
    if (architecture.model_type == std::string("llama"))
        fields.require("sliding_window", nullptr, "only full attention is supported");
    fields.value("sliding_window");
    for (const nlohmann::json& layer : fields.list("layer_types"))
        if (layer != "full_attention") fields.refuse("layer_types", "only full attention is supported");
    fields.require("pretraining_tp", 1, "only 1 is supported");
    fields.require("partial_rotary_factor", 1.0, "only heads that turn whole are supported");
    fields.require("rope_interleaved", false, "only rotations of half heads are supported");
    fields.require("quantization_config", nullptr, "give the model's weights before they were quantized");
    fields.require("pruned_heads", nlohmann::json::object(), "only whole layers are supported");
    fields.require("use_mrope", false, "only one position of a token is supported");
    fields.require("is_encoder_decoder", false, "only decoders are supported");
    fields.require("is_decoder", false, "only plain decoders are supported");
    fields.require("add_cross_attention", false, "only plain decoders are supported");
}

// Of rope_scaling or rope_parameters: which stretch of the rotations.
RopeScaling rope_scaling(ConfigFields& fields) {
    const nlohmann::json &type = fields.value("rope_type"), &older_name = fields.value("type");
    const nlohmann::json& name = type.is_null() ? older_name : type;
    if (!type.is_null() && !older_name.is_null() && type != older_name)
        fields.refuse("type", "rope_type says otherwise");
    if (name.is_null() || name == "default") return {};
    if (name != "llama3")
        fields.refuse(type.is_null() ? "type" : "rope_type", "supported are default and llama3");
    const RopeScaling scaling{fields.positive("factor"), fields.positive("low_freq_factor"),
                              fields.positive("high_freq_factor"),
                              fields.size("original_max_position_embeddings", INT32_MAX)};
    if (scaling.high_frequency_factor <= scaling.low_frequency_factor)
        fields.refuse("high_freq_factor", "it must be above low_freq_factor");
    return scaling;
}

// Newer files have rope_parameters with rope_theta in it, older ones rope_theta and rope_scaling.
void read_rotations(ConfigFields& fields, ModelConfig& config) {
    std::optional<double> theta = fields.optional_positive("rope_theta");
    if (!fields.value("rope_parameters").is_null() && !fields.value("rope_scaling").is_null() &&
        fields.value("rope_parameters") != fields.value("rope_scaling"))
        fields.refuse("rope_scaling", "rope_parameters says otherwise");
    for (const char* name : {"rope_scaling", "rope_parameters"}) {
        if (fields.value(name).is_null()) continue;
        ConfigFields rope(fields.path(), name, fields.value(name));
        const std::optional<double> own = rope.optional_positive("rope_theta");
        if (own && theta && *own != *theta)
            fields.refuse("rope_theta", std::string(name) + " says otherwise");
        if (own) theta = own;
        rope.require("partial_rotary_factor", 1.0, "only heads that turn whole are supported");
        config.rope_scaling = rope_scaling(rope);
        rope.refuse_others({});
    }
    config.rope_theta = theta.value_or(10000.0);  // files of Llama 2 do not name it
}

void read_shape(ConfigFields& fields, const Architecture& architecture, ModelConfig& config) {
    config.layers = fields.size("num_hidden_layers");
    config.width = fields.size("hidden_size");
    if (config.width % 2 != 0) fields.refuse("hidden_size", "it must be even");
    config.heads = fields.size("num_attention_heads");
    config.kv_heads = architecture.model_type == std::string("llama")
                          ? fields.optional_size("num_key_value_heads").value_or(config.heads)
                          : fields.size("num_key_value_heads");
    config.ffn = fields.size("intermediate_size");
    config.vocabulary = fields.size("vocab_size", INT32_MAX);
    if (config.heads % config.kv_heads != 0)
        fields.refuse("num_key_value_heads", "it must divide num_attention_heads");
    const std::optional<int64_t> head_dim =
        architecture.own_head_dim ? fields.size("head_dim") : fields.optional_size("head_dim");
    if (!head_dim && config.width % config.heads != 0)
        fields.refuse("hidden_size", "without head_dim it must be a multiple of num_attention_heads");
    config.head_dim = head_dim.value_or(config.width / config.heads);
    if (config.head_dim % 2 != 0 || config.head_dim > maximum_head_dim)
        fields.refuse(head_dim ? "head_dim" : "num_attention_heads",
                      "heads of " + std::to_string(config.head_dim) +
                          " numbers are not supported: even ones up to " + std::to_string(maximum_head_dim) +
                          " are");
}

void check_sequence_length(ConfigFields& fields, int64_t sequence_length) {
    const int64_t most = fields.size("max_position_embeddings", INT32_MAX);
    if (sequence_length > most)
        throw std::runtime_error("-seq_len " + std::to_string(sequence_length) + ": " + fields.path() +
                                 " has max_position_embeddings " + std::to_string(most) +
                                 "; give no longer sequences");
}

}  // namespace

bool is_hugging_face_folder(const std::string& directory) {
    const std::filesystem::path folder(directory);
    return std::filesystem::exists(folder / "config.json") &&
           !std::filesystem::exists(folder / "manifest.json");
}

ModelConfig read_hugging_face_config(const std::string& directory, int64_t sequence_length) {
    ConfigFields fields((std::filesystem::path(directory) / "config.json").string());
    const Architecture& architecture = architecture_of(fields);
    refuse_unsupported(fields, architecture);
    ModelConfig config;
    read_shape(fields, architecture, config);
    check_sequence_length(fields, sequence_length);
    config.sequence_length = sequence_length;
    config.tied = fields.flag("tie_word_embeddings", false);
    config.attention_biases = architecture.attention_biases;
    config.head_norms = architecture.head_norms;
    config.norm_epsilon = fields.positive("rms_norm_eps");
    read_rotations(fields, config);
    fields.refuse_others(harmless);
    config.name = format_count(parameter_count(config)) + " of " + directory;
    return config;
}

}  // namespace train_qat
