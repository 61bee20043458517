// What was found by timing, kept from one process to the next: timing is noisy, and a resumed run must make
// the same choices to compute the same bits.
//
//   train_qat tuning table 1: DEVICE
//   KEY CHOICE
//   ...
//
// A line counts if it ends with a line end. What a killed process wrote of its last line is dropped by the
// next one, before it adds a line of its own.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace train_qat {

class TuningTable {
  public:
    // `file` "": nothing is kept. `device` names what the choices hold for (card and library versions):
    // entries of a file for another device are not used, and the first new choice replaces them.
    // std::runtime_error when the file exists and is no tuning table.
    TuningTable(std::string file, std::string device);

    // The choice stored under `key`, or null. Neither keys nor choices contain spaces or line ends.
    const std::string* find(const std::string& key) const;
    // Stores a choice, also in the file, which is flushed to the disk: what a run computes from now on
    // depends on it. std::runtime_error when it can't be written.
    void set(const std::string& key, const std::string& choice);

  private:
    std::string file_, device_;
    int64_t whole_bytes_ = 0;  // of the file: its whole lines; 0: it is written anew
    std::map<std::string, std::string> choices_;
};

}  // namespace train_qat
