// Laws as files: what is read, and one line for each thing that can be wrong.
#include "model/job/law_file.h"

#include <random>

#include "test/support/catch.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"
#include "test/support/random_law.h"

using namespace train_qat;
using namespace train_qat::test;

namespace {

using Json = nlohmann::ordered_json;

class LawFile {
  public:
    std::string error(const std::string& text) const {
        const std::string path = directory_.write("bad.json", text);
        const std::string message = error_of([&] { read_scaling_law(path); });
        CHECK(mentions(message, {"-law " + path}));
        return message;
    }
    ScalingLaw read(const Json& json) const {
        return read_scaling_law(directory_.write("law.json", json.dump()));
    }
    std::string path() const { return directory_ / "law.json"; }

  private:
    const TemporaryDirectory directory_;
};

// The ways to all values of a file but elements of arrays.
std::vector<Json::json_pointer> keys_of(const Json& json,
                                        const Json::json_pointer& at = Json::json_pointer()) {
    std::vector<Json::json_pointer> keys;
    if (!at.empty()) keys.push_back(at);
    if (!json.at(at).is_object()) return keys;
    for (const auto& item : json.at(at).items())
        for (const auto& key : keys_of(json, at / item.key())) keys.push_back(key);
    return keys;
}

std::string dotted(const Json::json_pointer& key) {
    std::string text = key.to_string().substr(1);
    for (char& c : text)
        if (c == '/') c = '.';
    return text;
}

}  // namespace

TEST_CASE("a law is read as it is in its file", "[law_file]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    const LawFile file;
    ScalingLaw law = random_law(random);
    Json json = json_of(law);
    json["loss_law"]["huber"] = 0.01;  // other keys are ignored
    json["fitted_range"]["bits"] = {6, 1.58, 1};
    const ScalingLaw read = file.read(json);
    law.path = file.path();
    law.fitted.bits = {1, 1.58, 6};
    CHECK(read.path == law.path);
    CHECK(read.fitted.bits == law.fitted.bits);
    Json again = json_of(read);
    json["loss_law"].erase("huber");
    json["fitted_range"]["bits"] = {1, 1.58, 6};
    CHECK(nlohmann::json(again) == nlohmann::json(json));
}

TEST_CASE("every missing or mistyped key of a law is named", "[law_file]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    const LawFile file;
    const Json whole = json_of(random_law(random));
    REQUIRE(keys_of(whole).size() == 6 + 4 + 6 + 2 + 2 + 32 + 3 + 2 + 2);
    for (const Json::json_pointer& key : keys_of(whole)) {
        const bool may_be_null = key.back() == "full_precision", may_be_negative = key.back().ends_with("misfit");
        Json broken = whole;
        broken.at(key.parent_pointer()).erase(key.back());
        CHECK(mentions(file.error(broken.dump()), {"\"" + dotted(key) + "\" is missing"}));
        broken = whole;
        broken.at(key) = nullptr;
        if (!may_be_null) CHECK(mentions(file.error(broken.dump()), {dotted(key)}));
        broken.at(key) = true;
        CHECK(mentions(file.error(broken.dump()), {dotted(key)}));
        broken.at(key) = Json::array({"x"});
        if (key.back() != "data") CHECK(mentions(file.error(broken.dump()), {dotted(key)}));
        broken.at(key) = Json::array();
        if (key.back() != "data") CHECK(mentions(file.error(broken.dump()), {dotted(key)}));
        if (whole.at(key).is_number()) {
            broken.at(key) = -1;
            CHECK(mentions(file.error(broken.dump()), {dotted(key), "-1"}));
        }
        if (whole.at(key).is_array() && whole.at(key)[0].is_number() && !may_be_negative) {
            broken.at(key) = whole.at(key);
            broken.at(key)[1] = -0.5;
            CHECK(mentions(file.error(broken.dump()), {dotted(key) + "[1]", "-0.5"}));
        }
    }
}

TEST_CASE("values of a law that cannot be are one line", "[law_file]") {
    const uint64_t seed = fresh_seed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    const LawFile file;
    const Json whole = json_of(random_law(random, 20));
    const auto error = [&](const char* key, const Json& value) {
        Json broken = whole;
        broken[Json::json_pointer(key)] = value;
        return file.error(broken.dump());
    };
    CHECK(mentions(error("/format", "train_qat scaling law 1"), {"format", "scaling law 2"}));
    CHECK(mentions(error("/optimal_fraction", "both"), {"optimal_fraction", "both", "loss_law"}));
    CHECK(mentions(error("/source/runs", 0), {"source.runs"}));
    CHECK(mentions(error("/source/runs", 1.5), {"source.runs"}));
    CHECK(mentions(error("/source/vocabulary", 18446744073709551615u), {"source.vocabulary"}));
    CHECK(mentions(error("/fitted_range/tokens", {2, 1}), {"fitted_range.tokens"}));
    CHECK(mentions(error("/fitted_range/tokens", {1, 2, 3}), {"fitted_range.tokens"}));
    Json longer = whole["loss_law"]["bootstrap"]["rho"];
    longer.push_back(1);
    CHECK(mentions(error("/loss_law/bootstrap/rho", longer), {"loss_law.bootstrap.rho", "21", "20"}));
    Json shorter = whole["loss_law"]["bootstrap"]["alpha"];
    shorter.erase(0);
    CHECK(mentions(error("/loss_law/bootstrap/alpha", shorter), {"loss_law.bootstrap.alpha", "19", "20"}));
    CHECK(mentions(file.error("[]"), {"no JSON object"}));
    CHECK(mentions(file.error(""), {"no valid JSON"}));
    const std::string text = whole.dump();
    for (const char* number : {"NaN", "Infinity", "1e999"}) {
        std::string broken = text;
        const size_t at = broken.find("\"a\":") + 4;  // of fraction_law
        broken.replace(at, broken.find(',', at) - at, number);
        CHECK(mentions(file.error(broken), {"no valid JSON"}));
    }
    // Cut off anywhere.
    for (int i = 0; i < 50; ++i) file.error(text.substr(0, random() % (text.size() - 1)));
    CHECK(mentions(error_of([] { read_scaling_law("/nowhere/law.json"); }), {"-law /nowhere/law.json"}));
}
