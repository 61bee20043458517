// What was found by timing, kept from one process to the next: timing is noisy, and a resumed run must make
// the same choices to compute the same bits.
#pragma once

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
    // Stores a choice, also in the file.
    void set(const std::string& key, const std::string& choice);

  private:
    std::string file_, device_;
    bool valid_ = false;  // the file is of this device
    std::map<std::string, std::string> choices_;
};

}  // namespace train_qat
