// What documents begin and end with, as the files beside a tokenizer.json name it. In this order, of each kind the first that
// is a token of the tokenizer:
//   1. bos_token, eos_token of tokenizer_config.json: a text, or an object with it as `content`;
//   2. the same of special_tokens_map.json; before 1 where tokenizer_config.json has no added_tokens_decoder;
//   3. bos_token_id, eos_token_id of config.json: an id, or a list of them, whose first ends a document (others end turns);
//   4. the same of generation_config.json.
// Where a file has null, or nothing, the next one counts. Where a file of 1 or 2 names a token, transformers' tokenizers have
// the same one; their models take 3 and 4. data/prepare/tokenizer_files.py does the same for data preparation and exports.
#pragma once

#include <string>

#include "data/tokenizers/tokenizer_model.h"

namespace train_qat {

// path: of the tokenizer.json. Throws std::runtime_error that names the file, and the field, that is damaged or of another
// type; a file that is not there names nothing.
BeginAndEnd begin_and_end_beside(const std::string& path);

}  // namespace train_qat
