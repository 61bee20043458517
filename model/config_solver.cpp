// How a size and fixed values become a shape: presets, the search of the rule in config.h, and validation.
#include "model/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "model/units.h"

namespace train_qat {
namespace {

struct Preset {
    int64_t parameters, layers, width, heads, ffn;
};

constexpr std::array<Preset, 4> presets = {{{86'000'000, 8, 768, 12, 2304},
                                            {396'000'000, 16, 1280, 20, 4096},
                                            {759'000'000, 25, 1536, 12, 4096},
                                            {2'200'000'000, 26, 2560, 20, 7168}}};

constexpr int64_t smallest_width = 32, largest_width = 32768, most_layers = 256;
constexpr double swiglu_ratio = 8.0 / 3.0, least_ffn_ratio = 1.5, most_ffn_ratio = 4.0;

[[noreturn]] void fail(const std::string& message) {
    throw std::runtime_error(message);
}

int64_t round_up(double value, int64_t unit) {
    return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(value / unit - 1e-9))) * unit;
}

int64_t width_step(int64_t width) {
    return width < 256 ? 32 : width < 1536 ? 64 : 128;
}

int64_t usual_head_dim(int64_t width) {
    return width < 256 ? 32 : width < 1536 ? 64 : 128;
}

double target_aspect(int64_t width) {
    const double octaves = std::clamp(std::log2(width / 512.0), 0.0, 3.0);
    return 64.0 * std::exp2(octaves / 3.0);
}

int64_t ffn_by_ratio(int64_t width) {
    return round_up(swiglu_ratio * width, width < 256 ? 32 : width < 512 ? 128 : 256);
}

// Fills heads, head_dim and kv_heads for a width; false when no head dimension fits the fixed values.
bool choose_heads(ModelConfig& config, const ConfigOverrides& overrides) {
    const int64_t width = config.width;
    if (overrides.head_dim) {
        config.head_dim = *overrides.head_dim;
        if (!overrides.heads && width % config.head_dim != 0) return false;
        config.heads = overrides.heads.value_or(width / config.head_dim);
        config.kv_heads = overrides.kv_heads.value_or(config.heads);
        return config.heads % config.kv_heads == 0;
    }
    const auto fits = [&](int64_t head_dim) {
        return head_dim % 2 == 0 && width % head_dim == 0 &&
               (width / head_dim) % overrides.kv_heads.value_or(1) == 0;
    };
    int64_t head_dim = 0;
    if (overrides.heads) {
        if (width % *overrides.heads != 0) return false;
        head_dim = width / *overrides.heads;
        if (head_dim > maximum_head_dim || !fits(head_dim)) return false;
    } else {
        head_dim = usual_head_dim(width);
        while (head_dim > 1 && !fits(head_dim)) --head_dim;
        if (head_dim <= 1) return false;
    }
    config.head_dim = head_dim;
    config.heads = width / head_dim;
    config.kv_heads = overrides.kv_heads.value_or(config.heads);
    return true;
}

double score(const ModelConfig& config, int64_t requested) {
    const double deviation = std::abs(std::log(static_cast<double>(parameter_count(config)) / requested));
    const double aspect = static_cast<double>(config.width) / config.layers;
    const double ratio = static_cast<double>(config.ffn) / config.width;
    double points = 100.0 * deviation;
    // No shape term can reach this, so tolerance comes before shape.
    if (deviation > std::log1p(size_tolerance)) points += 1e3 + 1e5 * deviation;
    points += 2.0 * std::abs(std::log2(aspect / target_aspect(config.width)));
    points += 4.0 * std::abs(std::log2(ratio / swiglu_ratio));
    if (config.width >= 512 && config.width % 256 != 0) points += 2.0;
    if (config.ffn % 256 != 0) points += 1.0;
    if (config.layers == 1) points += 4.0;
    return points;
}

struct Search {
    int64_t requested;
    ConfigOverrides overrides;
    ModelConfig best;
    double best_score = std::numeric_limits<double>::infinity();

    void consider(ModelConfig& candidate, int64_t ffn) {
        candidate.ffn = ffn;
        const double points = score(candidate, requested);
        if (points < best_score) {
            best_score = points;
            best = candidate;
        }
    }

    // Parameters are linear in ffn: solve for it and try the neighbours of the exact solution on the grid.
    void consider_ffn_range(ModelConfig& candidate) {
        if (overrides.ffn) return consider(candidate, *overrides.ffn);
        const double width = static_cast<double>(candidate.width);
        candidate.ffn = 0;
        const double exact = static_cast<double>(requested - parameter_count(candidate)) /
                             (3.0 * width * static_cast<double>(candidate.layers));
        const double wanted = std::clamp(exact, least_ffn_ratio * width, most_ffn_ratio * width);
        for (const int64_t unit : {int64_t{candidate.width < 256 ? 32 : 128}, int64_t{256}}) {
            for (const double neighbour : {wanted - static_cast<double>(unit), wanted}) {
                const int64_t ffn = round_up(neighbour, unit);
                if (ffn >= least_ffn_ratio * width && ffn <= most_ffn_ratio * width) consider(candidate, ffn);
            }
        }
    }

    void consider_width(ModelConfig candidate, int64_t width) {
        candidate.width = width;
        if (!choose_heads(candidate, overrides)) return;
        const int64_t first = overrides.layers.value_or(1), last = overrides.layers.value_or(most_layers);
        for (int64_t layers = first; layers <= last; ++layers) {
            candidate.layers = layers;
            consider_ffn_range(candidate);
        }
    }
};

void check_positive(const std::optional<int64_t>& value, const char* flag, int64_t most = 1'000'000) {
    if (value && *value < 1)
        fail(formatted("%s %lld: must be at least 1", flag, static_cast<long long>(*value)));
    if (value && *value > most)
        fail(formatted("%s %lld: must be at most %lld", flag, static_cast<long long>(*value),
                       static_cast<long long>(most)));
}

void check_overrides(const ConfigOverrides& overrides) {
    // Each layer's tensors have names and places of their own, in a plan too: 10,000 take a quarter of a second.
    check_positive(overrides.layers, "-layers", 10'000);
    check_positive(overrides.width, "-width");
    check_positive(overrides.heads, "-heads");
    check_positive(overrides.kv_heads, "-kv_heads");
    check_positive(overrides.ffn, "-ffn");
    check_positive(overrides.head_dim, "-head_dim");
    if (overrides.head_dim && (*overrides.head_dim % 2 != 0 || *overrides.head_dim > maximum_head_dim))
        fail(formatted("-head_dim %lld: must be even and at most %lld",
                       static_cast<long long>(*overrides.head_dim),
                       static_cast<long long>(maximum_head_dim)));
    constexpr int64_t most_rows = 1'000'000;
    if (overrides.heads && overrides.head_dim && *overrides.heads * *overrides.head_dim > most_rows)
        fail(formatted("-heads %lld: times -head_dim %lld must be at most %lld",
                       static_cast<long long>(*overrides.heads), static_cast<long long>(*overrides.head_dim),
                       static_cast<long long>(most_rows)));
    if (overrides.heads && overrides.kv_heads && *overrides.heads % *overrides.kv_heads != 0) {
        fail(formatted("-kv_heads %lld: must divide -heads %lld", static_cast<long long>(*overrides.kv_heads),
                       static_cast<long long>(*overrides.heads)));
    }
}

// A preset with the user's heads, when it still has the size of its name.
bool use_preset(ModelConfig& config, int64_t requested, const ConfigOverrides& overrides) {
    if (overrides.layers || overrides.width || overrides.ffn) return false;
    for (const Preset& preset : presets) {
        if (preset.parameters != requested) continue;
        ModelConfig candidate = config;
        candidate.layers = preset.layers;
        candidate.width = preset.width;
        candidate.ffn = preset.ffn;
        ConfigOverrides heads = overrides;
        if (!heads.heads) heads.heads = preset.heads;
        if (!choose_heads(candidate, heads)) return false;
        const double deviation = static_cast<double>(parameter_count(candidate)) / requested - 1.0;
        if (std::abs(deviation) > size_tolerance) return false;
        config = candidate;
        return true;
    }
    return false;
}

[[noreturn]] void fail_too_small(const std::string& size_text, int64_t requested,
                                 const ModelConfig& smallest) {
    // Half of the parameters for the embedding at the smallest width leaves a model worth its name.
    const int64_t vocabulary = requested / (2 * smallest.width);
    std::string message =
        "-n " + size_text + ": too small for vocabulary " + std::to_string(smallest.vocabulary) +
        ": the embedding alone has " + format_exact(embedding_parameter_count(smallest)) +
        " parameters at the smallest width " + std::to_string(smallest.width) + ", the smallest model " +
        format_exact(parameter_count(smallest)) + "; ask for a larger size";
    if (vocabulary >= 256) {
        message += formatted(" or a smaller vocabulary (at most %lld)", static_cast<long long>(vocabulary));
    }
    fail(message);
}

ModelConfig solve(ModelConfig config, const std::string& size_text, const ConfigOverrides& overrides) {
    const int64_t requested = config.requested_parameters;
    if (use_preset(config, requested, overrides)) return config;
    Search search{requested, overrides, config};
    if (overrides.width) {
        search.consider_width(config, *overrides.width);
    } else {
        for (int64_t width = smallest_width; width <= largest_width; width += width_step(width)) {
            search.consider_width(config, width);
        }
    }
    if (search.best.width == 0) {
        fail(
            "-heads and -kv_heads: no width fits them (width = heads x an even head dimension of at most "
            "256 unless -head_dim gives it, kv_heads divides heads); give other heads, or -width");
    }
    const double ratio = static_cast<double>(parameter_count(search.best)) / requested;
    const bool free_width = !overrides.width && !overrides.layers && !overrides.ffn && !overrides.heads;
    if (!overrides.width && ratio > 1.0 + size_tolerance && search.best.width == smallest_width) {
        fail_too_small(size_text, requested, search.best);
    }
    if (free_width && ratio < 1.0 - size_tolerance && requested > 1'000'000'000'000) {
        fail("-n " + size_text + ": too large: the largest model that can be solved for has " +
             format_count(parameter_count(search.best)) + " parameters; ask for a smaller size");
    }
    return search.best;
}

ModelConfig from_fixed_shape(ModelConfig config, const ConfigOverrides& overrides) {
    if (!overrides.layers || !overrides.width) {
        fail("-n is missing: give a size such as -n 396M, or the shape with -layers and -width");
    }
    config.layers = *overrides.layers;
    config.width = *overrides.width;
    config.ffn = overrides.ffn.value_or(ffn_by_ratio(config.width));
    choose_heads(config, overrides);
    return config;
}

// With -width fixed the search cannot move away from a misfit: say which flag is wrong.
void check_fixed_width(const ConfigOverrides& overrides) {
    if (!overrides.width) return;
    const auto width = static_cast<long long>(*overrides.width);
    if (width % 2 != 0) fail(formatted("-width %lld: must be even (head dimensions are even)", width));
    if (overrides.head_dim) {
        if (overrides.heads || width % *overrides.head_dim == 0) return;
        fail(formatted("-head_dim %lld: does not divide the width %lld; give -heads too",
                       static_cast<long long>(*overrides.head_dim), width));
    }
    if (overrides.heads) {
        const auto heads = static_cast<long long>(*overrides.heads);
        if (width % heads != 0) fail(formatted("-heads %lld: must divide the width %lld", heads, width));
        const long long head_dim = width / heads;
        if (head_dim % 2 != 0 || head_dim > maximum_head_dim) {
            fail(formatted(
                "-heads %lld: gives width %lld a head dimension of %lld; it must be even and at most 256",
                heads, width, head_dim));
        }
        return;
    }
    ModelConfig probe;
    probe.width = *overrides.width;
    if (!choose_heads(probe, overrides)) {
        fail(formatted(
            "-kv_heads %lld: no head dimension of width %lld gives a multiple of it as heads; give -heads",
            static_cast<long long>(overrides.kv_heads.value_or(1)), width));
    }
}

}  // namespace

void validate_config(const ModelConfig& config) {
    const ConfigOverrides sizes{config.layers,   config.width, config.heads,
                                config.kv_heads, config.ffn,   config.head_dim};
    check_overrides(sizes);
    check_fixed_width(sizes);
    if (config.vocabulary < 1) fail("vocabulary: must be at least 1 token");
    if (config.sequence_length < 1) fail("sequence length: must be at least 1 token");
}

ModelConfig resolve_config(const std::string& size_text, int64_t vocabulary, int64_t sequence_length,
                           const ConfigOverrides& overrides) {
    check_overrides(overrides);
    check_fixed_width(overrides);
    ModelConfig config;
    config.vocabulary = vocabulary;
    config.sequence_length = sequence_length;
    config.tied = !overrides.untied;
    if (vocabulary < 1) fail("vocabulary: must be at least 1 token");
    if (size_text.empty()) {
        config = from_fixed_shape(config, overrides);
        config.name = format_count(parameter_count(config));
    } else {
        config.requested_parameters = parse_count(size_text, "-n");
        config.name = size_text;
        config = solve(config, size_text, overrides);
    }
    validate_config(config);
    return config;
}

}  // namespace train_qat
