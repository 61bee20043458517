// Which flags each mode of the program reads.
#include <filesystem>

#include "test/support/catch.h"
#include "test/support/command_line.h"
#include "test/support/file_damage.h"
#include "test/support/files.h"

using namespace train_qat;
using namespace train_qat::test;

TEST_CASE("a flag that has no effect on what is asked for is refused", "[options]") {
    const TemporaryDirectory directory;
    const std::string run = directory / "run", folder = directory / "folder";
    std::filesystem::create_directories(run);
    std::filesystem::create_directories(folder);
    write_bytes(folder + "/config.json", "{}");
    const std::string tokenizer = " -tokenizer x.model";
    const std::string measured = "-eval_only -e " + run, measured_folder = "-eval_only -e " + folder;
    const std::string text = "-sample A -e " + run + tokenizer, text_of_folder = "-sample A -e " + folder;
    const auto refuses = [](const std::string& line, const std::string& flags) {
        for (const std::string& flag : words(flags)) {
            const bool alone = flag == "-plan" || flag == "-resume" || flag == "-untied" ||
                               flag == "-tensorboard" || flag == "-retry_failed";
            INFO(line << " " << flag);
            CHECK(mentions(parse_error(line + " " + flag + (alone ? "" : " 2")),
                           {flag + ": is for", "leave it out"}));
        }
    };
    const std::string of_training =
        "-n -layers -width -heads -head_dim -kv_heads -ffn -untied -vocab -init_from -qat_frac -tokens -law "
        "-memory -flops -steps -cooldown_frac -warmup -lr -final_lr_frac -qat_lr -qat_warmup -plan -i -o "
        "-val_every -save_every -keep -resume -resume_from -from -until -print_every -tensorboard -export "
        "-prompt -grad_accum -weight_decay -beta1 -beta2 -eps -clip -scale_lr -total_batch -zero -sweep "
        "-sweep_ranks -retry_failed ";
    const std::string of_text = " -sample_tokens -temperature -top_k -top_p -seed";
    refuses(measured, of_training + of_text + " -b -group -seq_len -sample");
    refuses(measured_folder, of_training + of_text);
    refuses(text, of_training + "-b -group -seq_len -j -batch -logit_rows -val_sequences -hellaswag");
    refuses(text_of_folder, of_training + "-j -batch -logit_rows -val_sequences -hellaswag");
    refuses("-n 1M", "-e -hellaswag -sweep_ranks -retry_failed");
    refuses("-sweep grid.json", "-e -hellaswag -resume -resume_from -from -until -export");

    const std::string machine = " -device cpu -dtype fp32 -threads 2 -rank_timeout 5 -rendezvous x";
    const std::string measuring =
        " -j x.bin -batch 2 -logit_rows 9 -val_sequences 7 -hellaswag x" + tokenizer;
    const std::string writing = " -sample_tokens 9 -temperature 0 -top_k 4 -top_p 0.5 -seed 3";
    for (const std::string& line :
         {measured + machine + measuring,
          measured_folder + machine + measuring + " -b 2 -group 32 -seq_len 9", text + machine + writing,
          text_of_folder + tokenizer + machine + writing + " -b 2 -group 32 -seq_len 9",
          "-plan -n 1M -resume -until 3 -keep 4 -temperature 1" + machine,
          std::string("-sweep grid.json -plan -sweep_ranks 2 -n 1M")}) {
        INFO(line);
        CHECK(parse_error(line).empty());
    }
    CHECK(mentions(parse_error(measured_folder + " -group 32"), {"-group:", "-b"}));
    CHECK(mentions(parse_error(measured_folder + " -b 16 -group 32"), {"-group:", "-b"}));
    CHECK(mentions(parse_error(measured_folder + " -b auto"), {"-b auto:", "a number"}));
    CHECK(mentions(parse_error(measured + " -b 2"), {"-b: is for", "of a run", "has its own"}));
}
